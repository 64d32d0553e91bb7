# Sourced: a virtual machine with Debian 12's own kernel (6.1, cgroup v2 alone), without hardware help, on a disk of ours.
# Nothing is installed on the host, and nothing stays but TARGET/v2: the downloaded kernel, kept for the next time.
# Sets: work, scratch (removed at the end), vmlinuz, version, machine (qemu's process id while one runs).
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=$(realpath -m "$1")
work=$target/v2
mkdir -p "$work"
export PATH="$PATH:/usr/sbin:/sbin"

note() { echo "test-v2: $*" >&2; }
for command in qemu-system-x86_64 busybox mke2fs dpkg-deb cpio python3; do
  command -v "$command" >/dev/null || { note "$command is missing; run it as 'make test-v2', or install it"; exit 1; }
done

scratch=$(mktemp -d "$work/run.XXXXXX")
image=$scratch/root
machine=
cleanup() {
  [ -z "$machine" ] || kill -9 "$machine" 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT

# The kernel, as the distribution ships it.
fetch_kernel() {
  local package kernel folder
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
  modules=$kernel/lib/modules/$version
}

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

# $1: what the machine runs as process 1. What every machine has: busybox, a few real tools, the kernel's modules.
make_root() {
  local applet tool path plugins
  mkdir -p "$image"/{bin,sbin,etc,proc,sys,dev,run,tmp,root,usr/bin,usr/sbin,lib/modules,srv,var/lib,var/tmp}
  chmod 1777 "$image/tmp" "$image/var/tmp"
  cp "$(command -v busybox)" "$image/bin/busybox"
  for applet in $(busybox --list); do [ -e "$image/bin/$applet" ] || ln -s busybox "$image/bin/$applet"; done
  ln -s /bin/modprobe "$image/sbin/modprobe"
  # Not busybox's shell: it prefers its own applets to what lies in PATH.
  for tool in dash ip nft iptables-nft ip6tables-nft unshare nsenter sysctl lsns setpriv du find tar; do
    path=$(command -v "$tool") || { note "$tool is missing on this host; tests that use it will fail"; continue; }
    carry "$path"
    # Before busybox's of the same name.
    ln -sf "$path" "$image/bin/$tool"
  done
  ln -sf "$(command -v dash)" "$image/bin/sh"
  for plugins in /usr/lib/*/xtables; do
    mkdir -p "$image$plugins" && cp -L "$plugins"/*.so "$image$plugins/"
  done
  cp -r "$modules" "$image/lib/modules/"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$image/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$image/etc/group"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$image/etc/hosts"
  : >"$image/etc/resolv.conf"
  install -m 755 "$here/mounts" "$image/sbin/mounts"
  install -m 755 "$1" "$image/sbin/init"
}

# The root as a disk with ext4, since that is what data directories lie on (and its layers can be mounted idmapped in 6.1;
# tmpfs can't).
make_disk() {
  local size
  size=$(($(du -sm "$image" | cut -f1) + 1536))
  mke2fs -q -t ext4 -d "$image" "$scratch/disk.ext4" "${size}M" >/dev/null
  rm -rf "$image"
}

# A first root with the modules that the disk needs.
make_first_root() {
  local first=$scratch/first applet
  mkdir -p "$first"/{bin,sbin,proc,sys,dev,new,modules}
  cp "$(command -v busybox)" "$first/bin/busybox"
  for applet in sh mount insmod switch_root mdev sleep; do ln -s busybox "$first/bin/$applet"; done
  python3 - "$modules" "$first/modules" virtio_pci virtio_blk ext4 crc32c_generic <<'PY'
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
}

# $1: console file; $2: how qemu treats writes; $3: more for the kernel's command line. Sets `machine`: qemu itself.
boot() {
  : >"$1"
  qemu-system-x86_64 -accel tcg,thread=multi -cpu max -machine q35 -smp 2 -m 2048 -nographic -no-reboot \
    -nic none -kernel "$vmlinuz" -initrd "$scratch/first.gz" \
    -append "console=ttyS0 loglevel=5 softlockup_all_cpu_backtrace=1 panic=-1 random.trust_cpu=on mitigations=off $3" \
    -drive "file=$scratch/disk.ext4,format=raw,if=virtio,cache=$2" </dev/null >>"$1" 2>&1 &
  machine=$!
}

# $1: console file; $2: seconds. Shows it as it comes, until the machine ends or the time is over.
show() {
  timeout "$2" tail --pid="$machine" -n +1 -f "$1" | sed -u 's/\r//g; s/\x1b\[[?0-9;]*[a-zA-Z]//g; s/\x1bc//g' || true
}

# $1: console file; $2: a word. What follows in all lines "UTSUWA-V2 $2 …".
told() {
  tr -d '\r' <"$1" | sed -n "s/^UTSUWA-V2 $2 //p"
}

# $1: console file; $2: seconds. Shows the console until the machine has ended by itself; fails where it does not in time.
until_ended() {
  local status=0
  show "$1" "$2"
  if kill -0 "$machine" 2>/dev/null; then
    note "the machine did not finish within $2 s"
    return 1
  fi
  wait "$machine" || status=$?
  machine=
  return "$status"
}
