#!/usr/bin/env bash
# Cuts the power of a machine with Debian 12's kernel (6.1, cgroup v2 alone) while services are deployed in it, and looks after each
# cut whether every acknowledged deploy is there, ready and answers; then an orderly reboot, then `utsuwa down`.
#   usage: tests/v2/power.sh TARGET_DIR
#   UTSUWA_V2_CUTS     how often the power is cut (default 2)
#   UTSUWA_V2_SECONDS  time limit for each start of the machine (default 300)
set -euo pipefail
: "${1:?usage: tests/v2/power.sh TARGET_DIR}"
# shellcheck source=tests/v2/machine.sh
. "$(dirname "$0")/machine.sh"
cuts=${UTSUWA_V2_CUTS:-2}
limit=${UTSUWA_V2_SECONDS:-300}
fetch_kernel

note "building utsuwa"
(cd "$root" && CARGO_TARGET_DIR=$target "${CARGO:-cargo}" build --quiet -p utsuwa-daemon)
make_root "$here/power-init"
carry "$target/debug/utsuwa"
strip "$image$target/debug/utsuwa"
ln -s "$target/debug/utsuwa" "$image/usr/bin/utsuwa"
carry "$(command -v bash)"
ln -s "$(command -v bash)" "$image/bin/bash" 2>/dev/null || true
# Looks at the database itself; the test does without where it is not installed.
if path=$(command -v sqlite3); then carry "$path"; fi
make_disk
make_first_root

acknowledged=$scratch/acknowledged
: >"$acknowledged"
# $1: console file; $2: a word; $3: how many lines "UTSUWA-V2 $2 …" to wait for.
until_told() {
  local deadline=$((SECONDS + limit))
  until [ "$(told "$1" "$2" | wc -l)" -ge "$3" ]; do
    kill -0 "$machine" 2>/dev/null || { note "the machine ended before $3 × $2: $(told "$1" RESULT)"; exit 1; }
    [ "$SECONDS" -lt "$deadline" ] || { note "not within $limit s: $3 × $2"; exit 1; }
    sleep 0.1
  done
}
# $1: console file. Every deploy that was acknowledged at any time serves now.
check() {
  told "$1" SERVES >"$scratch/serves"
  local name lost=0
  while read -r name; do
    grep -qx "$name" "$scratch/serves" || { note "$name was acknowledged and is lost"; lost=1; }
  done <"$acknowledged"
  [ "$lost" -eq 0 ] || { note "result: failed"; exit 1; }
  note "$(wc -l <"$acknowledged") deploys were acknowledged, all serve; $(told "$1" PRIVATE | wc -l) half-made besides"
}

for ((round = 1; round <= cuts; round++)); do
  console=$scratch/console.$round
  note "booting $version (no hardware help: slow), power cut $round of $cuts to come"
  # Writes that the machine was told are on the disk are in the file before it is told so.
  boot "$console" writethrough "task=deploy round=$round"
  show "$console" "$((limit * 2))" &
  until_told "$console" CHECKED 1
  check "$console"
  until_told "$console" ACK $((3 + RANDOM % 4))
  moment=$((RANDOM % 1500))
  sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
  kill -9 "$machine"
  wait "$machine" 2>/dev/null || true
  machine=
  wait # for what shows the console
  # "ok" is the end of a line that came as a whole.
  told "$console" ACK | sed -n 's/ ok$//p' >>"$acknowledged"
  note "power cut $round: $moment ms after an acknowledged deploy"
done
for task in reboot down; do
  console=$scratch/console.$task
  note "booting $version, then $task"
  boot "$console" writethrough "task=$task"
  until_ended "$console" "$limit" || exit 1
  [ "$(told "$console" CHECKED)" = "$task" ] || { note "result: $(told "$console" RESULT)"; exit 1; }
  check "$console"
done
verdict=$(told "$console" RESULT | tail -n 1)
[ -n "$verdict" ] || { note "the machine ended without a result"; exit 1; }
note "result: $verdict ($cuts power cuts, a reboot, down)"
[ "$verdict" = passed ]
