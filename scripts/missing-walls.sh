#!/usr/bin/env bash
# Builds the program without walls (crates/runtime/src/sandbox/walls.rs) for the hostile suite's own proof. In a folder of its own,
# so that nobody finds it where the ordinary program is looked for; cargo fills it once and builds on it afterwards.
#   usage: scripts/missing-walls.sh TARGET_DIR     → TARGET_DIR/inputs/utsuwa-missing-walls
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
own=$target/missing-walls
"${CARGO:-cargo}" build --quiet --package utsuwa-daemon --features missing-walls --target-dir "$own"
mkdir -p "$target/inputs"
cp "$own/debug/utsuwa" "$target/inputs/utsuwa-missing-walls.new"
mv "$target/inputs/utsuwa-missing-walls.new" "$target/inputs/utsuwa-missing-walls"
