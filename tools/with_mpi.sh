#!/usr/bin/env bash
# Runs a command with one of Debian's MPIs first on PATH, under its plain names (mpirun, mpicxx, ...):
#
#   tools/with_mpi.sh mpich|openmpi COMMAND...
#
# Debian installs them side by side as mpirun.mpich and mpirun.openmpi; which one has the plain names is
# the machine's choice, not ours.
set -euo pipefail

kind=${1:?mpich or openmpi}
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=$PWD/.cache/mpi-$kind/bin
mkdir -p "$bin"
for name in mpirun mpiexec mpicc mpicxx; do
    if ! found=$(command -v "$name.$kind"); then
        echo "with_mpi: error: no $name.$kind on PATH (Debian: apt-get install lib$kind-dev $kind-bin;" \
            "for mpich: apt-get install mpich libmpich-dev)" >&2
        exit 2
    fi
    # No links: MPICH's mpiexec looks for its helpers in the folder in which it was found. Left alone
    # where it is right, since `make setup` builds anew for another mpicxx.
    printf '#!/bin/sh\nexec %q "$@"\n' "$found" >"$bin/.new"
    if ! cmp -s "$bin/.new" "$bin/$name"; then
        rm -f "$bin/$name"
        cp "$bin/.new" "$bin/$name" && chmod +x "$bin/$name"
    fi
done
PATH=$bin:$PATH exec "$@"
