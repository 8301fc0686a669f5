#!/usr/bin/env bash
# Starts Ray on a worker's machine, and clears the machine once Ray has ended there.
#   worker.sh start ARGUMENTS OF RAY START...
# Ray's autoscaler tries a given host once and never again: here it is tried a few times. And
# `ray down` reaches the head only, after which some helpers of Ray outlive it on the workers.
set -euo pipefail

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pid_file=$folder/watch.pid

# When a process began, in ticks since the machine did: after a restart of the machine a number that was
# written down is another process's.
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

start() {
  if read -r pid ticks 2>/dev/null <"$pid_file"; then
    if [ -n "$ticks" ] && [ "$(began "$pid")" = "$ticks" ]; then pkill -TERM -s "$pid" || true; fi
    rm -f "$pid_file"
  fi
  ray stop
  for attempt in 1 2 3; do
    if ray start "$@"; then
      setsid bash "${BASH_SOURCE[0]}" watch </dev/null >"$folder/watch.log" 2>&1 &
      echo "$! $(began $!)" >"$pid_file"
      return 0
    fi
    echo "Ray has not started here in attempt $attempt of 3" >&2
    ray stop --force
  done
  return 1
}

watch() {
  raylet=$(pgrep -n -u "$(id -u)" raylet) && tail --pid="$raylet" -f /dev/null
  ray stop --force
  rm -f "$pid_file"
}

case "${1:-}" in
  start) shift; start "$@" ;;
  watch) watch ;;
  *) echo "usage: $0 start ARGUMENTS OF RAY START..." >&2; exit 2 ;;
esac
