# shellcheck shell=bash
# Undo in reverse order, once, whatever ends the script: its end, an error, Ctrl-C or SIGTERM.
#
#   cleanup_install            set the traps (in the main shell, not in a subshell)
#   cleanup_add COMMAND...     push an undo step
#   run_child SECONDS COMMAND  run in the foreground with a deadline, and still react to signals at once

CLEANUP_STACK=()
CLEANUP_CHILD=
CLEANUP_SHELL=

cleanup_install() {
  CLEANUP_SHELL=$BASHPID
  trap 'cleanup_on_exit $?' EXIT
  trap 'cleanup_on_signal INT 130' INT
  trap 'cleanup_on_signal TERM 143' TERM
  trap 'cleanup_on_signal HUP 129' HUP
}

cleanup_add() {
  local step
  printf -v step '%q ' "$@"
  CLEANUP_STACK+=("$step")
}

cleanup_on_signal() {
  say "interrupted by SIG$1: cleaning up"
  exit "$2"
}

cleanup_on_exit() {
  local status=$1
  # A subshell inherits nothing of ours to undo.
  [[ $BASHPID == "$CLEANUP_SHELL" ]] || exit "$status"
  trap '' INT TERM HUP
  trap - EXIT
  set +e
  if [[ -n $CLEANUP_CHILD ]]; then
    end_process "$CLEANUP_CHILD" 65
    kill -KILL -- "-$CLEANUP_CHILD" 2>/dev/null
  fi
  cleanup_run
  exit "$status"
}

# cleanup_run: run the steps now; a step that fails is reported and does not stop the others.
cleanup_run() {
  local step
  while (( ${#CLEANUP_STACK[@]} > 0 )); do
    step=${CLEANUP_STACK[-1]}
    unset 'CLEANUP_STACK[-1]'
    eval "$step" || say "warning: clean-up step failed: $step"
  done
}

# The child gets a process group of its own, and the shell waits with `wait`, which a trapped signal interrupts:
# a foreground child would delay the trap until it ends by itself.
run_child() {
  local seconds=$1 status=0; shift
  set -m
  timeout --kill-after=60 "$seconds" "$@" </dev/null &
  CLEANUP_CHILD=$!
  set +m
  wait "$CLEANUP_CHILD" || status=$?
  CLEANUP_CHILD=
  if (( status == 124 )); then say "error: not done after ${seconds} s: $*"; fi
  return "$status"
}
