#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages that a make target needs. Elsewhere, or without root, it names them and stops only if
# one is really missing.
#   usage: scripts/deps.sh run|check|test|bench|test-v2
set -euo pipefail
what=${1:?usage: scripts/deps.sh run|check|test|bench|test-v2}

# command → package
declare -A need=([cc]=gcc [make]=make)
# What runs instances or looks at them.
[ "$what" = check ] || need+=([nft]=nftables [ip]=iproute2)
case $what in
  check) ;;
  run) need+=([curl]=curl) ;;
  test) need+=([mmdebstrap]=mmdebstrap [buildah]=buildah [skopeo]=skopeo [docker-registry]=docker-registry [busybox]=busybox-static [unshare]=util-linux [iptables-nft]=iptables [curl]=curl [python3]=python3 [npm]=npm [python3-venv]=python3-venv [nghttp]=nghttp2-client [chromium]=chromium [runsc]=runsc [pasta]=passt [promtool]=prometheus [newuidmap]=uidmap [pebble]=pebble [certutil]=libnss3-tools [openssl]=openssl [nginx]=nginx-light [haproxy]=haproxy) ;;
  bench) need+=([mmdebstrap]=mmdebstrap [buildah]=buildah [skopeo]=skopeo [docker-registry]=docker-registry [busybox]=busybox-static [podman]=podman [crun]=crun [runc]=runc [bwrap]=bubblewrap [runsc]=runsc [nginx]=nginx-light [haproxy]=haproxy [caddy]=caddy [h2load]=nghttp2-client [openssl]=openssl [curl]=curl) ;;
  test-v2) need+=([qemu-system-x86_64]=qemu-system-x86 [cpio]=cpio [busybox]=busybox-static [zstd]=zstd [dpkg-deb]=dpkg [mke2fs]=e2fsprogs [python3]=python3 [iptables-nft]=iptables [unshare]=util-linux [dash]=dash) ;;
  *) echo "deps.sh: $what: no such set; there are run, check, test, bench, test-v2" >&2; exit 2 ;;
esac

missing=()
for command in "${!need[@]}"; do
  # python3-venv is a package without a command of its own.
  if [ "$command" = python3-venv ]; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=("${need[$command]}")
    continue
  fi
  PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null 2>&1 || missing+=("${need[$command]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "make $what needs: ${missing[*]}" >&2
  echo "hint: as root on Debian or Ubuntu: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing for make $what: ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "hint: the packages could not be installed; the lines above say why" >&2
  exit 1
fi
