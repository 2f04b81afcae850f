#!/usr/bin/env bash
# One rank's pytest: rank 0 prints, the others write to a file, and each writes its own report.
#
#   REPORT=PREFIX mpirun -np N tools/rank_pytest.sh PYTEST-ARGUMENTS
#   tools/rank_pytest.sh --failed PREFIX    shows what the other ranks said
set -euo pipefail

if [[ ${1:-} == --failed ]]; then
    prefix=$2
    for log in "$prefix"-rank*.log; do
        [[ -e $log ]] || continue
        if grep -qE '^(FAILED|ERROR|E  )|Error|Abort|abort' "$log" || ! grep -qE ' in [0-9.]+s' "$log"; then
            echo "---- the end of $log"
            tail -n 40 "$log"
        fi
    done
    exit 0
fi

rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-${SLURM_PROCID:-0}}}}
# --capture=sys: the stack of a rank that hangs is written to the file descriptor, past pytest
command=(python -m pytest --capture=sys "$@" "--junitxml=$REPORT-rank$rank.xml" -p no:cacheprovider)
if [[ $rank == 0 ]]; then
    exec "${command[@]}"
fi
exec "${command[@]}" >"$REPORT-rank$rank.log" 2>&1
