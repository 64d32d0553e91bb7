#!/usr/bin/env bash
# Runs tests of the runtime on Debian 12's own kernel (6.1, cgroup v2 alone) in a virtual machine without hardware help.
#   usage: tests/v2/run.sh TARGET_DIR [TEST_BINARY…]      (default: kernel launcher keeper network)
#   UTSUWA_V2_FILTER   arguments for the test binaries, for example a test's name
#   UTSUWA_V2_SECONDS  time limit for the machine (default 900)
set -euo pipefail
: "${1:?usage: tests/v2/run.sh TARGET_DIR [TEST_BINARY…]}"
# shellcheck source=tests/v2/machine.sh
. "$(dirname "$0")/machine.sh"
shift
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(kernel launcher keeper network)
limit=${UTSUWA_V2_SECONDS:-900}
fetch_kernel

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

make_root "$here/init"
mkdir "$image/tests"
while read -r kind name path; do
  carry "$path"
  strip --strip-debug "$image$path" 2>/dev/null || true
  [ "$kind" = program ] || echo "$path" >>"$image/tests/list"
done <"$scratch/artifacts"
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
