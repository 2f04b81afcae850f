#!/usr/bin/env bash
# tools/limit.sh SECONDS COMMAND...: runs a command for so long at most, and says so if it was stopped.
#
# `timeout` makes a process group of its own, so that it can stop the command's children too; the
# price is that Ctrl-C does not reach them. Hence the trap. `set -m`: without job control a background
# command would ignore SIGINT, and with it all its children.
set -euo pipefail
set -m

seconds=$1
shift
timeout -k 15 "$seconds" "$@" </dev/null &
child=$!
trap 'trap - INT TERM; kill -TERM "$child" 2>/dev/null; wait "$child"; exit 130' INT TERM HUP
code=0
wait "$child" || code=$?
if ((code == 124 || code == 137)); then
    echo "stopped after $seconds s (a hang?): $*" >&2
fi
exit "$code"
