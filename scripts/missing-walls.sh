#!/usr/bin/env bash
# Builds the program without walls (crates/runtime/src/sandbox/walls.rs) for the hostile suite's own proof, beside the ordinary one.
#   usage: scripts/missing-walls.sh TARGET_DIR     → TARGET_DIR/inputs/utsuwa-missing-walls
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
"${CARGO:-cargo}" build --quiet --package utsuwa-daemon --features missing-walls --target-dir "$target"
mkdir -p "$target/inputs"
cp "$target/debug/utsuwa" "$target/inputs/utsuwa-missing-walls.new"
mv "$target/inputs/utsuwa-missing-walls.new" "$target/inputs/utsuwa-missing-walls"
