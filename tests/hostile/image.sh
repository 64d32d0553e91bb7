#!/usr/bin/env bash
# Compiles the hostile program and packs it into an OCI archive, with nothing but a C compiler, tar and sha256sum. Root, for
# the archive holds a device node and files of others.
#
#   usage: tests/hostile/image.sh OUTPUT_DIR     → OUTPUT_DIR/hostile (the program), OUTPUT_DIR/hostile.tar (oci-archive),
#                                                OUTPUT_DIR/loader (see loader/loader.c; x86-64 only)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
key=$(cat "$here"/*.* "$here"/loader/* | sha256sum | cut -c1-16)
if [ -f "$out/hostile.tar" ] && [ "$(cat "$out/hostile.key" 2>/dev/null)" = "$key" ]; then
  exit 0
fi
work=$(mktemp -d "$out/hostile.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

"${CC:-cc}" -std=gnu17 -O1 -Wall -Wextra -Werror -Wno-missing-field-initializers -static -o "$work/hostile" "$here"/*.c
if [ "$(uname -m)" = x86_64 ]; then
  "${CC:-cc}" -std=gnu17 -O1 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -nostdlib -static -no-pie \
    -o "$work/loader" "$here/loader/loader.c"
  mv "$work/loader" "$out/loader"
fi

root=$work/root
mkdir -p "$root"/{etc,srv,tmp,root,proc,sys,dev}
chmod 1777 "$root/tmp"
cp "$work/hostile" "$root/hostile"
printf 'root:x:0:0:root:/root:/bin/false\nuser:x:1000:1000::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
# What the image brings to attack with: setuid files, a device, something all instances share.
cp "$work/hostile" "$root/srv/setuid"
chmod 6755 "$root/srv/setuid"
# As harmless a device as there is; what counts is that it would open.
mknod "$root/srv/device" c 1 5
printf 'original' >"$root/srv/shared"

layout=$work/layout
mkdir -p "$layout/blobs/sha256"
tar --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 -C "$root" -cf "$work/layer" .
put() { # FILE → its digest, now among the blobs
  local digest
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  cp "$1" "$layout/blobs/sha256/$digest"
  printf '%s' "$digest"
}
size() { stat -c %s "$1"; }
case $(uname -m) in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; *) machine=$(uname -m) ;; esac
layer=$(put "$work/layer")
cat >"$work/config" <<JSON
{"architecture":"$machine","os":"linux","config":{"Entrypoint":["/hostile"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]}}
JSON
config=$(put "$work/config")
cat >"$work/manifest" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$(size "$work/config")},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:$layer","size":$(size "$work/layer")}]}
JSON
manifest=$(put "$work/manifest")
cat >"$layout/index.json" <<JSON
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$(size "$work/manifest"),"annotations":{"org.opencontainers.image.ref.name":"hostile:latest"}}]}
JSON
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
tar -C "$layout" -cf "$work/hostile.tar" .
mv "$work/hostile" "$out/hostile"
mv "$work/hostile.tar" "$out/hostile.tar"
printf '%s' "$key" >"$out/hostile.key"
