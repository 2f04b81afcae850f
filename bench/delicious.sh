#!/usr/bin/env bash
# Delicious on 1, 2 and 4 ranks, three seeds each, at equal local steps. Goes on where it was stopped.
#
#   bench/delicious.sh [FOLDER OF RUNS]      needs data/delicious (configs/delicious.yaml says how)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:-runs}
for seed in 0 1 2; do
    for ranks in 1 2 4; do
        name=delicious-s$seed-n$ranks
        if [[ $(cat "$runs/$name/STATUS" 2>/dev/null) == finished ]]; then continue; fi
        tools/mpirun.sh --quiet -np "$ranks" python -m ist_hpc.train --config configs/delicious.yaml \
            --runs "$runs" --name "$name" --resume --set "seed=$seed"
    done
done
python -m ist_hpc.plot "$runs"/delicious-s?-n? --group --x steps samples --output docs/delicious.png
for k in 1 3 5; do python -m ist_hpc.plot "$runs"/delicious-s?-n? --group --metric "precision_at_$k" --table; done
