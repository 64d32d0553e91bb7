#!/usr/bin/env bash
# Builds examples/flask-chat (the unchanged Dockerfile) into an OCI archive, from the distribution's and Python's packages only:
# no public container registry is assumed. The base image `python:3.11-slim` is stood in for by a minimal Debian 12 with its
# Python 3.11. Cached: a second run does nothing while the inputs are the same.
#
#   usage: tests/images/flask-chat.sh OUTPUT_DIR     → OUTPUT_DIR/flask-chat.tar (oci-archive, tag flask-chat:latest)
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
out=$1
mkdir -p "$out"
out=$(cd "$out" && pwd)
app=$here/examples/flask-chat
key=$(cat "$here/tests/images/flask-chat.sh" "$app/.dockerignore" "$app/Dockerfile" "$app/main.py" "$app/requirements.txt" | sha256sum | cut -c1-16)
if [ -f "$out/flask-chat.tar" ] && [ "$(cat "$out/flask-chat.key" 2>/dev/null)" = "$key" ]; then
  exit 0
fi
for tool in mmdebstrap buildah; do
  command -v "$tool" >/dev/null || { echo "flask-chat.sh: $tool is missing; install it: apt-get install $tool" >&2; exit 1; }
done
work=$(mktemp -d "$out/flask-chat.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
# buildah's own storage stays inside the work folder: nothing on the machine is changed.
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)

base_key=$(grep -A3 '^mmdebstrap' "$here/tests/images/flask-chat.sh" | sha256sum | cut -c1-16)
if [ ! -f "$out/python-base-$base_key.tar" ]; then
  echo "flask-chat.sh: making the base image (Debian 12 with Python 3.11), a minute or two" >&2
mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
    --customize-hook='ln -sf python3 "$1/usr/bin/python"; rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$work/base.tar"
  mv "$work/base.tar" "$out/python-base-$base_key.tar"
fi

container=$(buildah "${storage[@]}" from scratch)
buildah "${storage[@]}" add -q "$container" "$out/python-base-$base_key.tar" / >/dev/null
buildah "${storage[@]}" config --cmd python3 --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin --env LANG=C.UTF-8 "$container"
buildah "${storage[@]}" commit -q "$container" docker.io/library/python:3.11-slim >/dev/null

# openai 1.6.1 breaks with httpx ≥ 0.28, which its own requirements allow: constrain it from outside, the files stay unchanged.
printf 'httpx<0.28\n' > "$work/constraints.txt"
printf '[global]\nconstraint = /run/pip-constraints.txt\nroot-user-action = ignore\n' > "$work/pip.conf"
printf '[aliases]\n"python" = "docker.io/library/python"\n' > "$work/registries.conf"
certs=()
[ -f /etc/ssl/certs/ca-certificates.crt ] && certs=(--volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro)
CONTAINERS_REGISTRIES_CONF="$work/registries.conf" buildah "${storage[@]}" build --quiet --pull-never --isolation chroot --network host --layers=false \
    --volume "$work/pip.conf:/etc/pip.conf:ro" --volume "$work/constraints.txt:/run/pip-constraints.txt:ro" "${certs[@]}" \
    --tag localhost/flask-chat:latest "$here/examples/flask-chat" >&2
buildah "${storage[@]}" push -q localhost/flask-chat:latest "oci-archive:$work/flask-chat.tar:flask-chat:latest"
mv "$work/flask-chat.tar" "$out/flask-chat.tar"
printf '%s' "$key" > "$out/flask-chat.key"
