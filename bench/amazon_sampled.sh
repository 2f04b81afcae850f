#!/usr/bin/env bash
# Amazon-670k at its true size with sampled labels, on this machine, beside what else one could do:
# one rank with all cores, local SGD, and the full softmax for a few rounds. Made data (said so).
# usage: bench/amazon_sampled.sh RUNS [EPOCHS]     (needs 16 GB of memory and 4 GB of disk for each run)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:?usage: bench/amazon_sampled.sh RUNS [EPOCHS]}
epochs=${2:-1}
data=data/amazon670k-like-5000
[[ -d $data ]] || python -m ist_hpc.prepare synthetic --like amazon670k --test-rows 5000 --output "$data"
cores=$(nproc)

train() { # RANKS NAME SETTINGS...
    local ranks=$1 name=$2
    shift 2
    [[ $(cat "$runs/$name/STATUS" 2>/dev/null) == finished ]] && return
    rm -rf "${runs:?}/$name"
    OMP_NUM_THREADS=$((ranks > 1 ? 1 : cores)) tools/mpirun.sh --quiet -np "$ranks" python -m ist_hpc.train \
        --config configs/amazon670k.yaml --runs "$runs" --name "$name" --set data.path=$data \
        train.epochs="$epochs" evaluate.every_epochs=0.5 evaluate.rows=1000 checkpoint.every_minutes=0 "$@"
}

sampled=(model.loss=sampled_softmax model.negatives=2000 model.output_start=zero)
train 4 ist-sampled "${sampled[@]}"
train 1 one-rank-sampled "${sampled[@]}"
train 4 local-sgd-sampled "${sampled[@]}" train.algorithm=local_sgd
train 4 ist-full model.loss=softmax train.epochs=null train.rounds=3 evaluate.every_epochs=0
python bench/run_costs.py "$runs"/{ist-sampled,one-rank-sampled,local-sgd-sampled,ist-full}
