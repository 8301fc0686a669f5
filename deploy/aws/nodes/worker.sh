#!/usr/bin/env bash
# Clears a worker's machine of all that Ray has left there, once Ray's own process has ended:
# `ray down` reaches the head only, and some helpers outlive the rest.
#   worker.sh begin   after Ray has been started
#   worker.sh end     before it is stopped or started anew
set -euo pipefail

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pid_file=$folder/watch.pid

case "${1:-}" in
  begin)
    setsid bash "${BASH_SOURCE[0]}" watch </dev/null >"$folder/watch.log" 2>&1 &
    echo $! >"$pid_file"
    ;;
  end)
    if pid=$(cat "$pid_file" 2>/dev/null); then
      pkill -TERM -s "$pid" 2>/dev/null || true
      rm -f "$pid_file"
    fi
    ;;
  watch)
    raylet=$(pgrep -n -u "$(id -u)" raylet)
    tail --pid="$raylet" -f /dev/null
    ray stop --force
    rm -f "$pid_file"
    ;;
  *) echo "usage: $0 begin|end" >&2; exit 2 ;;
esac
