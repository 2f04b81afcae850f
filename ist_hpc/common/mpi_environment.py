"""What launchers say about this process in its environment, read before MPI, or without it.

All processes that a rank starts inherit its variables: in a shell of `srun --pty bash` and in a
notebook of a job they are those of the shell or of the notebook. So only this module decides
whether this process is a rank. In doubt it is none, and the process prints: a line printed twice
can be read, a missing line cannot.
"""

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

from ist_hpc.common.errors import InputError

# A launcher's rank counts only together with its number of ranks.
_RANK_AND_RANKS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
_OF_GLOO = ("HOROVOD_RANK", "HOROVOD_GLOO_RENDEZVOUS_ADDR")
_OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK")
_OF_A_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS")


def rank_of_launcher(environment: Mapping[str, str] = os.environ) -> int:
    """The rank from the launcher's environment, before or without MPI; 0 if it has none."""
    for rank_name, ranks_name in _RANK_AND_RANKS:
        rank, ranks = _number(environment, rank_name), _number(environment, ranks_name)
        if rank is not None and ranks is not None and rank < ranks:
            return rank
    if all(name in environment for name in _OF_GLOO):
        return _number(environment, _OF_GLOO[0]) or 0
    if _is_apart(environment):
        return 0
    if "PMIX_NAMESPACE" in environment:
        return _number(environment, "PMIX_RANK") or 0
    rank, tasks = _number(environment, "SLURM_PROCID"), _tasks(environment)
    if rank is None or rank >= tasks or _task_session(environment) is None:
        return 0
    return rank


def ranks_of_launcher(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks the launcher started, from its environment; 1 without a launcher."""
    for _, ranks_name in _RANK_AND_RANKS:
        ranks = _number(environment, ranks_name)
        if ranks is not None:
            return ranks
    return 1 if _is_apart(environment) else _tasks(environment)


def variable_of_a_rank(environment: Mapping[str, str] = os.environ) -> str | None:
    """The variable that makes this process a rank of an MPI launcher; None if none does."""
    if _is_alone_in_its_step(environment):
        return None
    return next((name for name in _OF_MPI if name in environment), None)


@contextmanager
def as_started(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """While MPI starts in the block, hide a Slurm step to which this process does not belong.

    MPI would try to join the step's ranks. Open MPI ends with advice to rebuild it if Slurm
    offers no PMIx, and otherwise joins once: a second program in the same shell ends the step, and
    the shell with it.
    """
    hidden = {}
    if _is_alone_in_its_step(environment):
        for name in list(environment):
            of_pmix = name.startswith("PMIX_") and not name.startswith("PMIX_MCA_")
            if name in _OF_A_STEP or of_pmix or name.startswith("PMI_"):
                hidden[name] = environment.pop(name)
    try:
        yield
    finally:
        environment.update(hidden)


def find_wheel(
    environment: MutableMapping[str, str] = os.environ, prefix: str = sys.prefix
) -> None:
    """Set the place of the MPI from PyPI, if pip alone installed it beside this Python.

    Otherwise a plain `python`, as a single rank, would look for it where the wheel was built. `make
    setup` lets Python set it as it starts; a place that is already given is kept.

    prefix  the prefix of this Python; a virtual environment, since a system's MPI knows its place
    """
    is_own = prefix != sys.base_prefix and os.path.exists(os.path.join(prefix, "lib/libmpi.so.40"))
    if is_own and os.path.exists(os.path.join(prefix, "bin/orterun")):
        environment.setdefault("OPAL_PREFIX", prefix)


def refuse_step_without_pmix(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `InputError` if the MPI from PyPI would end with advice to rebuild it.

    It can join a Slurm step only by PMIx. Other MPIs may have other ways.
    """
    from_pypi = environment.get("OPAL_PREFIX") == sys.prefix
    without = _is_in_a_step(environment) and "PMIX_NAMESPACE" not in environment
    if from_pypi and without and not _is_alone_in_its_step(environment):
        refuse_alone(1, environment)


def refuse_alone(ranks: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise `InputError` if MPI has one rank although a launcher started several processes.

    ranks  size of MPI's world
    """
    started = ranks_of_launcher(environment)
    if ranks > 1 or started <= 1:
        return
    of_mpirun = any(_number(environment, ranks_name) for _, ranks_name in _RANK_AND_RANKS)
    if of_mpirun and not _is_in_a_step(environment):
        raise InputError(
            f"the launcher started {started} processes but each is alone in MPI: it is the "
            "launcher of another MPI; start it with the mpirun of this one (make check says which "
            "one is in use), or with srun --mpi=pmix"
        )
    raise InputError(
        f"Slurm started {started} tasks but each is alone in MPI; start it with srun "
        "--mpi=pmix (srun --mpi=list shows what there is), or with mpirun"
    )


def _is_in_a_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process, and not an mpirun within the step."""
    return "SLURM_STEP_ID" in environment and "OMPI_COMM_WORLD_SIZE" not in environment


def _is_alone_in_its_step(environment: Mapping[str, str]) -> bool:
    """Whether this process certainly shares no MPI with another process of its Slurm step."""
    if not _is_in_a_step(environment) or (_number(environment, "PMI_SIZE") or 1) > 1:
        return False
    # steps of several components count the tasks of each by itself
    one_task = _number(environment, "SLURM_STEP_NUM_TASKS") == 1
    return _is_apart(environment) or (one_task and "SLURM_HET_SIZE" not in environment)


def _is_apart(environment: Mapping[str, str]) -> bool:
    """Whether this process is certainly not a task of its Slurm step: a shell or notebook began it.

    A task, and processes that its script starts, have the step's session. With `srun --pty` the
    shell has its own; a notebook gives each kernel its own.
    """
    task, session = _number(environment, "SLURM_TASK_PID"), _task_session(environment)
    if session is None or task == os.getpid():
        return False
    mine = os.getsid(0)
    return mine != session or (mine == task and "SLURM_PTY_PORT" in environment)


def _task_session(environment: Mapping[str, str]) -> int | None:
    """The session of the Slurm task of this process; None if none can be seen."""
    task = _number(environment, "SLURM_TASK_PID")
    if task is None or not _is_in_a_step(environment):
        return None
    try:
        return os.getsid(task)
    except OSError:
        return None


def _tasks(environment: Mapping[str, str]) -> int:
    return _number(environment, "SLURM_STEP_NUM_TASKS") or 1


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
