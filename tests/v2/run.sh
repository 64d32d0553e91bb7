#!/usr/bin/env bash
# Runs tests of the runtime and the hostile suite on Debian 12's own kernel (6.1, cgroup v2 alone) in a virtual machine without
# hardware help.
#   usage: tests/v2/run.sh TARGET_DIR [SUITE…]      (default: kernel launcher keeper network hostile)
#   A suite is a test binary of utsuwa-runtime, or `hostile`: what the whole program does with tests/hostile in an instance.
#   UTSUWA_V2_FILTER   arguments for the test binaries, for example a test's name
#   UTSUWA_V2_SECONDS  time limit for the machine (default 900)
set -euo pipefail
: "${1:?usage: tests/v2/run.sh TARGET_DIR [SUITE…]}"
# shellcheck source=tests/v2/machine.sh
. "$(dirname "$0")/machine.sh"
shift
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(kernel launcher keeper network hostile)
limit=${UTSUWA_V2_SECONDS:-900}
fetch_kernel

# The tests, built here and carried to the same paths in the machine: they know each other by path.
note "building ${suites[*]}"
arguments=(-p utsuwa-runtime)
hostile=
for suite in "${suites[@]}"; do
  if [ "$suite" = hostile ]; then
    hostile=yes
    arguments+=(-p utsuwa-daemon --test e2e)
  else
    arguments+=(--test "$suite")
  fi
done
(cd "$root" && CARGO_TARGET_DIR=$target "${CARGO:-cargo}" test --quiet --no-run --message-format=json "${arguments[@]}") >"$scratch/build.json"
python3 - "$scratch/build.json" >"$scratch/artifacts" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        kind = "test" if message["profile"]["test"] else "program"
        print(kind, message["target"]["name"], message["executable"])
PY

make_root "$here/init"
mkdir "$image/tests"
while read -r kind name path; do
  carry "$path"
  strip --strip-debug "$image$path" 2>/dev/null || true
  # One server at a time, as on every machine; what needs another build or the repository's pages stays out.
  case $kind-$name in
    test-e2e) echo "$path --test-threads 1 hostile:: contract:: --skip hostile::walls --skip hostile::page" >>"$image/tests/list" ;;
    test-*) echo "$path --test-threads 2" >>"$image/tests/list" ;;
  esac
done <"$scratch/artifacts"
if [ -n "$hostile" ]; then
  "$root/tests/hostile/image.sh" "$target/inputs/images" >"$scratch/hostile.log" 2>&1 || { tail -n 20 "$scratch/hostile.log" >&2; exit 1; }
  mkdir "$image/tests/hostile"
  cp "$target/inputs/images"/{hostile,hostile.tar} "$image/tests/hostile"
  if [ -f "$target/inputs/images/loader" ]; then cp "$target/inputs/images/loader" "$image/tests/hostile"; fi
fi
# Tests may look for files of the repository (images, sample sources) at their place here.
mkdir -p "$image$root/crates/runtime"
cp -r "$root/crates/runtime/tests" "$image$root/crates/runtime/"
printf '%s\n' "${UTSUWA_V2_FILTER:-}" >"$image/tests/filter"
make_disk
make_first_root

note "booting $version (no hardware help: slow), at most ${limit} s"
console=$scratch/console
boot "$console" unsafe ""
until_ended "$console" "$limit" || true
verdict=$(told "$console" RESULT | tail -n 1)
[ -n "$verdict" ] || { note "the machine ended without a result"; exit 1; }
note "result: $verdict"
[ "$verdict" = passed ]
