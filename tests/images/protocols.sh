#!/usr/bin/env bash
# Builds the image of tests/images/protocols (an aiohttp app and a grpcio server) on the base that flask-chat.sh made. Cached: a
# second run does nothing while the inputs are the same.
#
#   usage: tests/images/protocols.sh OUTPUT_DIR     → OUTPUT_DIR/protocols.tar (oci-archive, tag protocols:latest)
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
out=$(cd "$1" && pwd)
key=$(cat "$here/tests/images/protocols.sh" "$here"/tests/images/protocols/* | sha256sum | cut -c1-16)
if [ -f "$out/protocols.tar" ] && [ "$(cat "$out/protocols.key" 2>/dev/null)" = "$key" ]; then
  exit 0
fi
base=$(ls -t "$out"/python-base-*.tar 2>/dev/null | head -n 1)
[ -n "$base" ] || { echo "protocols.sh: no base image in $out; tests/images/flask-chat.sh makes it" >&2; exit 1; }
work=$(mktemp -d "$out/protocols.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
container=$(buildah "${storage[@]}" from scratch)
buildah "${storage[@]}" add -q "$container" "$base" / >/dev/null
buildah "${storage[@]}" config --cmd python3 --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin --env LANG=C.UTF-8 "$container"
buildah "${storage[@]}" commit -q "$container" docker.io/library/python:3.11-slim >/dev/null
printf '[global]\nroot-user-action = ignore\n' > "$work/pip.conf"
printf '[aliases]\n"python" = "docker.io/library/python"\n' > "$work/registries.conf"
certs=()
[ -f /etc/ssl/certs/ca-certificates.crt ] && certs=(--volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro)
CONTAINERS_REGISTRIES_CONF="$work/registries.conf" buildah "${storage[@]}" build --quiet --pull-never --isolation chroot --network host --layers=false \
    --volume "$work/pip.conf:/etc/pip.conf:ro" "${certs[@]}" --tag localhost/protocols:latest "$here/tests/images/protocols" >&2
buildah "${storage[@]}" push -q localhost/protocols:latest "oci-archive:$work/protocols.tar:protocols:latest"
mv "$work/protocols.tar" "$out/protocols.tar"
printf '%s' "$key" > "$out/protocols.key"
