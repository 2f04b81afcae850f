#!/usr/bin/env bash
# Seconds and bytes of a round of Amazon-670k's model as ranks are added: 1, 2, 4 and 8 ranks, hidden
# 256 and 512. Made data of the true shape. usage: bench/amazon_growth.sh RUNS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:?usage: bench/amazon_growth.sh RUNS}
data=data/amazon670k-like-256
[[ -d $data ]] || python -m ist_hpc.prepare synthetic --like amazon670k --train-rows 20000 --test-rows 256 --output "$data"
folders=()
for hidden in 256 512; do
    for ranks in 1 2 4 8; do
        name=growth-h$hidden-n$ranks
        folders+=("$runs/$name")
        [[ -f $runs/$name/summary.json ]] || tools/mpirun.sh --quiet -np "$ranks" \
            python -m ist_hpc.train --config configs/amazon670k.yaml --runs "$runs" --name "$name" \
            --set data.path=$data "model.hidden=[$hidden]" train.rounds=4 \
            train.local_steps=3 evaluate.every_epochs=0 checkpoint.every_minutes=0
        rm -rf "${runs:?}/$name/checkpoints"
    done
done
python bench/run_costs.py "${folders[@]}"
