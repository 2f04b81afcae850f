#!/usr/bin/env bash
# mpirun, for ranks that share a machine. Open MPI has to be told that ranks may share cores; MPICH's
# mpirun allows it anyway and does not know these words.
set -euo pipefail

# mpirun gives its ranks a terminal, which makes pytest colour even a log file
[[ -t 1 ]] || export NO_COLOR=1
if [[ $(mpirun --version 2>&1) == *"Open MPI"* ]]; then
    exec mpirun --oversubscribe --bind-to none "$@"
fi
# --quiet is Open MPI's too: no words of its own about a rank's exit code
[[ ${1:-} == --quiet ]] && shift
exec mpirun "$@"
