#!/usr/bin/env bash
# How many starts of MPI under srun end in a crash, where ranks come up to 2 s apart.
#
#   bench/slurm_starts.sh TIMES [SRUN-OPTION...] [-- VARIABLE=VALUE...]   (of the environment)
#
#   bench/slurm_starts.sh 40 --nodes=2 --ntasks-per-node=2
#   bench/slurm_starts.sh 40 --nodes=4 -- SLURM_PMIX_FENCE=tree
#
# What the crashed ones printed is in starts-N.out. Where there is no cluster: `bench/hosts.sh up 4 1gbit`,
# `bench/hosts.sh slurm`, `bench/hosts.sh on h1 bench/slurm_starts.sh ...` (docs/reliability.md).
set -euo pipefail
[[ ${1-} =~ ^[1-9][0-9]*$ ]] || { echo "slurm_starts: error: how many starts? $0 TIMES ..." >&2 && exit 2; }
times=$1 && shift
options=()
while (($#)) && [[ $1 != -- ]]; do options+=("$1") && shift; done
(($# == 0)) || shift

program='
import random, time
time.sleep(random.uniform(0, 2))
from mpi4py import MPI
assert MPI.COMM_WORLD.allreduce(1) == MPI.COMM_WORLD.Get_size()
'
failed=0
for ((start = 1; start <= times; start++)); do
    env "$@" timeout 60 srun --mpi=pmix --kill-on-bad-exit=1 "${options[@]}" python -c "$program" \
        >"starts-$start.out" 2>&1 && rm "starts-$start.out" || failed=$((failed + 1))
done
echo "$failed of $times starts failed"
