#!/usr/bin/env bash
# Runs a command with the places of the test inputs in its environment, then says which tests were skipped and why.
#   usage: scripts/with-inputs.sh TARGET_DIR COMMAND…
set -uo pipefail
inputs=$1/inputs
shift
export UTSUWA_TEST_SKIPPED="$inputs/skipped.txt"
: >"$UTSUWA_TEST_SKIPPED"
[ -f "$inputs/images/flask-chat.tar" ] && export UTSUWA_TEST_FLASK_IMAGE="$inputs/images/flask-chat.tar"
[ -f "$inputs/images/protocols.tar" ] && export UTSUWA_TEST_PROTOCOLS_IMAGE="$inputs/images/protocols.tar"
[ -f "$inputs/images/hostile.tar" ] && export UTSUWA_TEST_HOSTILE="$inputs/images"
[ -x "$inputs/utsuwa-missing-walls" ] && export UTSUWA_TEST_MISSING_WALLS="$inputs/utsuwa-missing-walls"
[ -f "$inputs/google-proto-files/.done" ] && export UTSUWA_GOOGLE_PROTOS="$inputs/google-proto-files/node_modules/google-proto-files"
[ -f "$inputs/venv/.done" ] && export UTSUWA_TEST_PYTHON="$inputs/venv/bin/python"
export PATH="$PATH:/usr/sbin:/sbin"
"$@"
status=$?
count=$(wc -l <"$UTSUWA_TEST_SKIPPED")
if [ "$count" -gt 0 ]; then
  echo "skipped by name ($count):"
  sort -u "$UTSUWA_TEST_SKIPPED" | sed 's/^/  /'
fi
exit $status
