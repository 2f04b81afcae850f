#!/usr/bin/env bash
# Amazon-670k at its true size, 135,909-512-670,091, on this machine: a round of ten steps, an
# evaluation over 2,000 rows, a checkpoint, then a resume with one more round. Made data (said so).
# usage: bench/amazon_true_size.sh RUNS [RANKS]      (needs 8 GB of memory and 6 GB of disk)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:?usage: bench/amazon_true_size.sh RUNS [RANKS]}
ranks=${2:-4}
data=data/amazon670k-like-2000
[[ -d $data ]] || python -m ist_hpc.prepare synthetic --like amazon670k --test-rows 2000 --output "$data"

train() {
    tools/mpirun.sh --quiet -np "$ranks" python -m ist_hpc.train --config configs/amazon670k.yaml \
        --runs "$runs" --name "true-size-n$ranks" --resume --set data.path=$data \
        evaluate.every_epochs=0 checkpoint.every_minutes=0 "$@"
}
python -m ist_hpc.plan --config configs/amazon670k.yaml --ranks "$ranks" --set data.path=$data
train train.rounds=1
echo "---- resumed"
train train.rounds=2
python bench/run_costs.py "$runs/true-size-n$ranks"
