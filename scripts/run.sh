#!/usr/bin/env bash
# `make run`: starts the server in the background (unless it runs), then the quickstart. The server goes on running.
set -euo pipefail
utsuwa=$1
if [ "$(id -u)" -ne 0 ]; then
  echo "make run needs root: the keeper makes namespaces, cgroups and mounts. Try: sudo make run" >&2
  exit 1
fi
if ! id utsuwa >/dev/null 2>&1; then
  useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin utsuwa
fi
api=${UTSUWA_API:-http://localhost:8787}
if curl -fsS --noproxy '*' --max-time 2 "$api/healthz" >/dev/null 2>&1; then
  echo "A server already answers at $api; using it."
else
  log=${UTSUWA_LOG:-/var/log/utsuwa.log}
  out=$(mktemp)
  setsid "$utsuwa" up </dev/null >"$out" 2>>"$log" &
  server=$!
  # Readiness is a line on stdout; the loop only ends the wait when the server itself has ended.
  for look in $(seq 600); do
    [ "$look" -ne 11 ] || echo "Waiting for the server (process $server) to be ready, up to 60 s; its log: $log" >&2
    grep -qx ready "$out" && break
    kill -0 "$server" 2>/dev/null || { cat "$out"; tail -n 20 "$log" >&2; echo "hint: $utsuwa doctor" >&2; rm -f "$out"; exit 1; }
    sleep 0.1
  done
  cat "$out"
  grep -qx ready "$out" || { echo "the server was not ready after 60 s; its log: $log" >&2; rm -f "$out"; exit 1; }
  rm -f "$out"
  echo "The server runs (process $server, log $log). Stop it with: $utsuwa down"
fi
"$utsuwa" quickstart
