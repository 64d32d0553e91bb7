#!/usr/bin/env bash
# Makes what tests use besides the code, once: the flask-chat, protocols and hostile images, Google's API descriptions (npm) and Google's Python
# client (PyPI). Everything lies under TARGET/inputs and is made again only when its recipe changes.
#   usage: scripts/test-inputs.sh TARGET_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
inputs=$1/inputs
mkdir -p "$inputs"

note() { echo "test-inputs: $*" >&2; }

if [ "$(id -u)" -eq 0 ]; then
  "$here/tests/images/flask-chat.sh" "$inputs/images" >"$inputs/flask-chat.log" 2>&1 ||
    { tail -n 20 "$inputs/flask-chat.log" >&2; note "the flask-chat image could not be built (log above)"; exit 1; }
  "$here/tests/images/protocols.sh" "$inputs/images" >"$inputs/protocols.log" 2>&1 ||
    { tail -n 20 "$inputs/protocols.log" >&2; note "the protocols image could not be built (log above)"; exit 1; }
  "$here/tests/hostile/image.sh" "$inputs/images" >"$inputs/hostile.log" 2>&1 ||
    { tail -n 20 "$inputs/hostile.log" >&2; note "the hostile image could not be built (log above)"; exit 1; }
else
  note "not root: the flask-chat, protocols and hostile images are not built, their tests are skipped by name"
fi

# Facts of Google's public API, to compare our own protos with. The package's google/protobuf folder is older than the
# compiler's built-in one and must not shadow it.
protos=$inputs/google-proto-files
if [ ! -f "$protos/.done" ]; then
  if command -v npm >/dev/null; then
    rm -rf "$protos" && mkdir -p "$protos"
    (cd "$protos" && npm install --silent --no-audit --no-fund --ignore-scripts --prefix . google-proto-files@5.0.3 >/dev/null)
    rm -rf "$protos/node_modules/google-proto-files/google/protobuf"
    touch "$protos/.done"
  else
    note "npm is not installed: the comparison with Google's protos is skipped by name"
  fi
fi

# Google's own client library, and clients of other protocols, unchanged.
venv=$inputs/venv
clients=(grpcio-health-checking websockets)
if [ "$(cat "$venv/.done" 2>/dev/null)" != "${clients[*]}" ]; then
  if python3 -m venv --help >/dev/null 2>&1 && rm -rf "$venv" && python3 -m venv "$venv" 2>/dev/null; then
    "$venv/bin/pip" install --quiet google-cloud-run==0.16.0 "${clients[@]}" 2>"$inputs/pip.log" && printf '%s' "${clients[*]}" > "$venv/.done" ||
      { tail -n 5 "$inputs/pip.log" >&2; note "google-cloud-run could not be installed: its test is skipped by name"; }
  else
    note "python3 has no venv: the test with Google's Python client is skipped by name"
  fi
fi
