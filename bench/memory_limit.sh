#!/usr/bin/env bash
# Twice the paper's model of Amazon-670k, 135,909-1024-670,091 (3.3 GB of weights), where a process
# may have 4.4 GB (`ulimit -v`): one process is refused, and dies if it is not; four ranks train it.
# Made data of the true shape. usage: bench/memory_limit.sh RUNS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:?usage: bench/memory_limit.sh RUNS}
limit_kib=${LIMIT_KIB:-4300000}
data=data/amazon670k-like-256
[[ -d $data ]] || python -m ist_hpc.prepare synthetic --like amazon670k --train-rows 20000 --test-rows 256 --output "$data"

train() {
    local ranks=$1
    shift
    # In the ranks, not in mpirun: the limit is of each process.
    # shellcheck disable=SC2016
    tools/mpirun.sh --quiet -np "$ranks" bash -c 'ulimit -v "$0" && exec "$@"' "$limit_kib" \
        python -m ist_hpc.train --config configs/amazon670k.yaml --runs "$runs" \
        --set data.path=$data 'model.hidden=[1024]' train.rounds=2 \
        train.local_steps=3 evaluate.every_epochs=0 checkpoint.every_minutes=0 "$@"
}
echo "---- one process, $limit_kib KiB"
if train 1; then exit 1; fi
echo "---- one process that is told it may have 64 GB"
mkdir -p "$runs"
if train 1 runtime.memory_gb=64 >"$runs/limit-one.log" 2>&1; then exit 1; fi
tail -2 "$runs/limit-one.log"
echo "---- four ranks, $limit_kib KiB each"
rm -rf "$runs/limit-n4"
train 4 --name limit-n4
python bench/run_costs.py "$runs/limit-n4"
