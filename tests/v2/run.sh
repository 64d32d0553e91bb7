#!/usr/bin/env bash
# Runs tests of the runtime on Debian 12's own kernel (6.1, cgroup v2 alone) in a virtual machine without hardware help.
# Nothing is installed on the host, and nothing stays but TARGET/v2: the downloaded kernel, kept for the next time.
#   usage: tests/v2/run.sh TARGET_DIR [TEST_BINARY…]      (default: kernel launcher keeper network)
#   UTSUWA_V2_FILTER   arguments for the test binaries, for example a test's name
#   UTSUWA_V2_SECONDS  time limit for the machine (default 900)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=$(realpath -m "${1:?usage: tests/v2/run.sh TARGET_DIR [TEST_BINARY…]}")
shift
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(kernel launcher keeper network)
limit=${UTSUWA_V2_SECONDS:-900}
work=$target/v2
mkdir -p "$work"
export PATH="$PATH:/usr/sbin:/sbin"

note() { echo "test-v2: $*" >&2; }
for command in qemu-system-x86_64 busybox mke2fs dpkg-deb cpio python3; do
  command -v "$command" >/dev/null || { note "$command is missing; run it as 'make test-v2', or install it"; exit 1; }
done

scratch=$(mktemp -d "$work/run.XXXXXX")
machine=
cleanup() {
  [ -z "$machine" ] || kill "$machine" 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT

# The kernel, as the distribution ships it.
package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
[ -n "$package" ] || { note "apt knows no linux-image-amd64; this test needs Debian or Ubuntu on x86-64"; exit 1; }
version=${package#linux-image-}
kernel=$work/kernel/$version
if [ ! -f "$kernel/.done" ]; then
  note "fetching $package"
  rm -rf "$kernel" && mkdir -p "$kernel"
  (cd "$scratch" && apt-get -q download "$package" 2>"$scratch/apt.log") >/dev/null || { cat "$scratch/apt.log" >&2; exit 1; }
  dpkg-deb -x "$scratch/$package"_*.deb "$kernel"
  rm -f "$scratch/$package"_*.deb
  for folder in drivers sound; do # of the drivers, only what a virtual machine has
    [ -d "$kernel/lib/modules/$version/kernel/$folder" ] || continue
    find "$kernel/lib/modules/$version/kernel/$folder" -name '*.ko*' |
      grep -v -E '/drivers/(virtio|block|char/hw_random)/|/drivers/net/[^/]*$' | xargs -r rm -f
  done
  busybox depmod -b "$kernel" "$version"
  touch "$kernel/.done"
fi
vmlinuz=$kernel/boot/vmlinuz-$version

# The tests, built here and carried to the same paths in the machine: they know each other by path.
note "building ${tests[*]}"
arguments=()
for test in "${tests[@]}"; do arguments+=(--test "$test"); done
(cd "$root" && CARGO_TARGET_DIR=$target "${CARGO:-cargo}" test --quiet --no-run --message-format=json -p utsuwa-runtime "${arguments[@]}") >"$scratch/build.json"
python3 - "$scratch/build.json" >"$scratch/artifacts" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        kind = "test" if message["profile"]["test"] else "program"
        print(kind, message["target"]["name"], message["executable"])
PY

image=$scratch/root
mkdir -p "$image"/{bin,sbin,etc,proc,sys,dev,run,tmp,root,usr/bin,usr/sbin,lib/modules,var/lib,tests}
chmod 1777 "$image/tmp"
cp "$(command -v busybox)" "$image/bin/busybox"
for applet in $(busybox --list); do [ -e "$image/bin/$applet" ] || ln -s busybox "$image/bin/$applet"; done
ln -s /bin/modprobe "$image/sbin/modprobe"
# $1: a program; copies it and the libraries it is linked with.
carry() {
  local file
  mkdir -p "$image$(dirname "$1")"
  rm -f "$image$1"
  cp -L "$1" "$image$1"
  for file in $(ldd "$1" 2>/dev/null | grep -o '/[^ )]*'); do
    [ -e "$image$file" ] && continue
    mkdir -p "$image$(dirname "$file")"
    cp -L "$file" "$image$file"
  done
}
# Not busybox's shell: it prefers its own applets to what lies in PATH.
for tool in dash ip nft iptables-nft ip6tables-nft unshare nsenter sysctl; do
  path=$(command -v "$tool") || { note "$tool is missing on this host; tests that use it will fail"; continue; }
  carry "$path"
  # Before busybox's of the same name.
  ln -sf "$path" "$image/bin/$tool"
done
ln -sf "$(command -v dash)" "$image/bin/sh"
for plugins in /usr/lib/*/xtables; do
  mkdir -p "$image$plugins" && cp -L "$plugins"/*.so "$image$plugins/"
done
while read -r kind name path; do
  carry "$path"
  strip --strip-debug "$image$path" 2>/dev/null || true
  [ "$kind" = program ] || echo "$path" >>"$image/tests/list"
done <"$scratch/artifacts"
# Tests may look for files of the repository (images, sample sources) at their place here.
mkdir -p "$image$root/crates/runtime"
cp -r "$root/crates/runtime/tests" "$image$root/crates/runtime/"
cp -r "$kernel/lib/modules/$version" "$image/lib/modules/"
printf '%s\n' "${UTSUWA_V2_FILTER:-}" >"$image/tests/filter"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$image/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$image/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$image/etc/hosts"
: >"$image/etc/resolv.conf"
install -m 755 "$here/init" "$image/sbin/init"

# One disk with ext4, since that is what data directories lie on (and its layers can be mounted idmapped in 6.1; tmpfs can't).
size=$(($(du -sm "$image" | cut -f1) + 1536))
mke2fs -q -t ext4 -d "$image" "$scratch/disk.ext4" "${size}M" >/dev/null
rm -rf "$image"

# A first root with the modules that the disk needs.
first=$scratch/first
mkdir -p "$first"/{bin,sbin,proc,sys,dev,new,modules}
cp "$(command -v busybox)" "$first/bin/busybox"
for applet in sh mount insmod switch_root mdev sleep; do ln -s busybox "$first/bin/$applet"; done
python3 - "$kernel/lib/modules/$version" "$first/modules" virtio_pci virtio_blk ext4 crc32c_generic <<'PY'
import os, shutil, sys
base, out, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
needs = dict(line.rstrip("\n").split(":", 1) for line in open(f"{base}/modules.dep"))
paths = {os.path.basename(path).split(".ko")[0].replace("-", "_"): path for path in needs}
order = []
def load(path):
    for need in needs[path].split():
        load(need)
    if path not in order:
        order.append(path)
for name in wanted:
    if name in paths:
        load(paths[name])  # else it is built in
for number, path in enumerate(order):
    shutil.copy(f"{base}/{path}", f"{out}/{number:02}-{os.path.basename(path)}")
PY
install -m 755 "$here/first-init" "$first/init"
(cd "$first" && find . -print0 | cpio --quiet --null --create --format=newc --owner 0:0) | gzip -1 >"$scratch/first.gz"

note "booting $version (no hardware help: slow), at most ${limit} s"
console=$scratch/console
: >"$console"
timeout --kill-after=5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -machine q35 -smp 2 -m 2048 -nographic -no-reboot \
  -nic none -kernel "$vmlinuz" -initrd "$scratch/first.gz" \
  -append "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off" \
  -drive "file=$scratch/disk.ext4,format=raw,if=virtio,cache=unsafe" </dev/null >>"$console" 2>&1 &
machine=$!
# Everything on the console is shown as it comes.
tail --pid="$machine" -n +1 -f "$console" | sed -u 's/\r//g; s/\x1b\[[?0-9;]*[a-zA-Z]//g; s/\x1bc//g' || true
status=0
wait "$machine" || status=$?
machine=
verdict=$(tr -d '\r' <"$console" | sed -n 's/^UTSUWA-V2 RESULT //p' | tail -n 1)
if [ -z "$verdict" ]; then
  [ "$status" -eq 124 ] && note "the machine did not finish within ${limit} s" || note "the machine ended without a result (qemu: $status)"
  exit 1
fi
note "result: $verdict"
[ "$verdict" = passed ]
