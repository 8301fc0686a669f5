#!/usr/bin/env bash
# Runs the coordinator for as long as Ray's head runs on this machine: `ray down` ends it,
# and it is started again should it end by itself. Its store is not touched by either.
#   coordinator.sh start | stop
set -euo pipefail

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
log=$folder/coordinator.log
pid_file=$folder/keeper.pid
port_file=$folder/port

# When a process began, in ticks since the machine did: after a restart of the machine a number that was
# written down is another process's.
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

stop() {
  local pid ticks
  read -r pid ticks 2>/dev/null <"$pid_file" || return 0
  [ "$(began "$pid")" = "$ticks" ] || { rm -f "$pid_file"; return 0; }
  kill -TERM "$pid" 2>/dev/null || return 0
  for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
  echo "the coordinator (process $pid) has not ended in 30 s: see $log" >&2
  return 1
}

start() {
  stop
  rm -f "$port_file"
  setsid bash "${BASH_SOURCE[0]}" keep </dev/null >>"$log" 2>&1 &
  local keeper=$!
  for _ in $(seq 600); do
    [ -s "$port_file" ] && { echo "the coordinator serves on port $(cat "$port_file")"; return 0; }
    kill -0 "$keeper" 2>/dev/null || break
    sleep 0.1
  done
  echo "the coordinator does not serve; the end of $log:" >&2
  tail -n 20 "$log" >&2
  stop
  return 1
}

keep() {
  echo "$$ $(began $$)" >"$pid_file"
  cd "$HOME"
  local head child ended
  head=$(pgrep -n -u "$(id -u)" gcs_server) || { echo "Ray's head does not run here"; exit 1; }
  tail --pid="$head" -f /dev/null &
  local watch=$!
  trap 'kill -TERM "${child:-}" "$watch" 2>/dev/null; wait "${child:-}" 2>/dev/null; rm -f "$pid_file"; exit 0' TERM INT
  while kill -0 "$head" 2>/dev/null; do
    share-dist coordinator serve --config "$folder/coordinator.toml" --port-file "$port_file" &
    child=$!
    ended=0
    wait -n "$child" "$watch" || ended=$?
    kill -0 "$head" 2>/dev/null || break
    echo "the coordinator ended with $ended; it is started again in 1 s"
    sleep 1
  done
  kill -TERM "$child" "$watch" 2>/dev/null || true
  wait "$child" || true
  rm -f "$pid_file"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  keep) keep ;;
  *) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
