# shellcheck shell=bash
# Messages, deadlines and small questions that every other part of deploy/lib uses.

say()  { printf '%s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; return 1; }

have() { command -v "$1" >/dev/null 2>&1; }

# now_ms: milliseconds of the wall clock, for durations that are shown to people.
now_ms() { printf '%s\n' "$(( ${EPOCHREALTIME/[.,]/} / 1000 ))"; }

# wait_until SECONDS COMMAND...: run COMMAND again and again until it succeeds; fails when the deadline has passed.
wait_until() {
  local deadline=$(( SECONDS + $1 )); shift
  until "$@" >/dev/null 2>&1; do
    (( SECONDS < deadline )) || return 1
    sleep 0.1
  done
}

# process_gone PID: true when no such process exists (a zombie counts as gone: it holds nothing any more).
process_gone() {
  local state
  state=$(awk '/^State:/ { print $2 }' "/proc/$1/status" 2>/dev/null) || return 0
  [[ -z $state || $state == Z ]]
}

# end_process PID SECONDS: ask with SIGTERM, insist with SIGKILL when the deadline has passed.
end_process() {
  local pid=$1 seconds=$2
  process_gone "$pid" && return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  wait_until "$seconds" process_gone "$pid" && return 0
  kill -KILL "$pid" 2>/dev/null || return 0
  wait_until 5 process_gone "$pid"
}

# free_port: a TCP port of the loopback that was free a moment ago (the caller must be ready to lose the race).
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# random_name: eight characters that are safe in file, interface and container names.
random_name() { od -An -N4 -tx4 /dev/urandom | tr -d ' \n'; }
