"""What launchers leave in the environment: who is a rank, who speaks, and how MPI starts."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ist_hpc.check_starts import WAYS
from ist_hpc.common.errors import InputError
from ist_hpc.common.mpi_environment import (
    as_started,
    find_wheel,
    rank_of_launcher,
    ranks_of_launcher,
    refuse_alone,
    refuse_step_without_pmix,
    variable_of_a_rank,
)
from tests.helpers.launching import ROOT, one_error_line, run_python

# A Slurm step of two tasks, of which this process is the second.
_TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_TASK_PID": str(os.getpid()),
}
_PMIX = {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.7.0", "PMIX_SERVER_URI2": "x"}
_ONE = {**_TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}

_RANKS = [
    ({}, 0, 1),
    ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, 3, 4),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2),
    ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "h"}, 1, 1),
    (_TASK, 1, 2),
    ({**_TASK, **_PMIX}, 1, 2),
    (_PMIX, 1, 1),
    # a rank alone, without the number of ranks beside it, proves nothing
    ({"SLURM_PROCID": "2"}, 0, 1),
    ({"SLURM_PROCID": "2", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, 0, 1),
    ({"PMIX_RANK": "2"}, 0, 1),
    ({"OMPI_COMM_WORLD_RANK": "2"}, 0, 1),
    ({"PMI_RANK": "2"}, 0, 1),
    ({"HOROVOD_RANK": "2", "HOROVOD_SIZE": "4"}, 0, 1),
    ({"OMPI_COMM_WORLD_RANK": "4", "OMPI_COMM_WORLD_SIZE": "4"}, 0, 4),
    ({"OMPI_COMM_WORLD_RANK": "\u0663", "OMPI_COMM_WORLD_SIZE": "4"}, 0, 4),
    ({"PMI_RANK": "-1", "PMI_SIZE": "2"}, 0, 2),
    # variables that were copied from a step elsewhere: no such process here
    ({**_TASK, "SLURM_TASK_PID": "99999999"}, 0, 2),
]


@pytest.mark.parametrize(("environment", "rank", "ranks"), _RANKS)
def test_a_rank_is_one_by_more_than_a_number(environment, rank, ranks):
    assert rank_of_launcher(environment) == rank
    assert ranks_of_launcher(environment) == ranks


def test_what_a_task_starts_in_a_session_of_its_own_is_no_rank():
    """A notebook starts its kernels so; a script, its programs in its own session."""
    code = (
        "import os\nfrom ist_hpc.common.mpi_environment import *\n"
        "print(rank_of_launcher(), ranks_of_launcher(), variable_of_a_rank())"
    )
    task = {**os.environ, **_TASK, **_PMIX}
    for session, said in ((False, "1 2 PMIX_RANK"), (True, "0 1 None")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=task,
            start_new_session=session,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == said


def test_mpi_starts_as_one_rank_where_a_step_did_not_start_it_as_a_rank():
    for environment, hides in (
        (_ONE, True),
        ({**_ONE, **_PMIX}, True),
        ({**_ONE, "PMI_RANK": "0", "PMI_SIZE": "1", "PMI_FD": "9"}, True),
        ({**_TASK, **_PMIX}, False),
        ({**_ONE, "SLURM_HET_SIZE": "2"}, False),  # another component of the step has more tasks
        ({**_ONE, "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "0"}, False),  # an mpirun in the step
        ({**_ONE, "PMI_SIZE": "2", "PMI_RANK": "0"}, False),  # the same of MPICH
        ({**_PMIX}, False),  # a launcher that is not Slurm
    ):
        given = {**environment, "PMIX_MCA_psec": "native", "HOME": "/x"}
        inside = dict(given)
        with as_started(inside):
            hidden = given.keys() - inside.keys()
            assert ("SLURM_STEP_ID" in hidden) == hides, environment
            kept = {"PMIX_MCA_psec", "SLURM_JOB_ID", "HOME"} & given.keys()
            assert kept <= inside.keys()
            if hides:
                assert not [name for name in inside if name.startswith(("PMI_", "PMIX_RANK"))]
        assert inside == given


def test_a_step_without_pmix_is_refused_before_the_mpi_from_pypi_starts(monkeypatch):
    ours = {"OPAL_PREFIX": sys.prefix}
    for environment in (_TASK, {**_TASK, "PMI_RANK": "1", "PMI_SIZE": "2"}):
        with pytest.raises(InputError, match=r"Slurm started 2 tasks .* srun --mpi=pmix"):
            refuse_step_without_pmix({**environment, **ours})
        refuse_step_without_pmix(environment)  # another MPI may know a way
    for environment in (_ONE, {**_TASK, **_PMIX}, {**_TASK, "OMPI_COMM_WORLD_SIZE": "2"}, {}):
        refuse_step_without_pmix({**environment, **ours})


def test_ranks_that_are_alone_under_the_launcher_of_another_mpi_are_told():
    for environment in (
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
    ):
        with pytest.raises(InputError, match=r"started 2 processes .* launcher of another MPI"):
            refuse_alone(1, environment)
        refuse_alone(2, environment)
    refuse_alone(1, {})


def test_a_study_may_be_started_in_a_shell_of_a_step():
    assert variable_of_a_rank({"PMIX_RANK": "0"}) == "PMIX_RANK"
    assert variable_of_a_rank({**_TASK, **_PMIX}) == "PMIX_RANK"
    assert variable_of_a_rank({**_ONE, **_PMIX}) is None


@pytest.mark.parametrize(
    "inherited",
    [
        {"SLURM_PROCID": "2"},
        {"SLURM_PROCID": "2", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
        {"PMIX_RANK": "2", "PMI_RANK": "2", "OMPI_COMM_WORLD_RANK": "2"},
    ],
)
@pytest.mark.parametrize("module", ["train", "prepare", "bench", "show"])
def test_inherited_variables_silence_nobody(tmp_path, inherited, module):
    words = ["-m", f"ist_hpc.{module}"]
    assert "usage" in run_python([*words, "--help"], tmp_path, env=inherited).stdout.lower()
    line = one_error_line(run_python([*words, "--bogus"], tmp_path, env=inherited, check=False))
    assert f"{module}: error: " in line


def test_mpi_that_does_not_load_is_one_line(tmp_path):
    """As under a mpi4py that is told of a library that is not there."""
    code = (
        "import os, sys\nos.environ['MPI4PY_LIBMPI'] = os.environ['MPI4PY_MPIABI'] = 'mpich'\n"
        "sys.modules['mpi4py.MPI'] = None\n"
        "from ist_hpc.train import main\nsys.exit(main())"
    )
    line = one_error_line(run_python(["-c", code], tmp_path, check=False))
    assert "train: error: MPI does not load (" in line


def _literals(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & {
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMIX_NAMESPACE"),
        *("PMI_RANK", "PMI_SIZE", "HOROVOD_RANK", "HOROVOD_SIZE", "SLURM_PROCID"),
        *("SLURM_STEP_NUM_TASKS", "SLURM_TASK_PID", "SLURM_LOCALID", "MPI_LOCALRANKID"),
        *("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_NPROCS"),
    }


def test_ranks_are_read_from_the_environment_in_one_module():
    readers = {path.name for path in (ROOT / "ist_hpc").rglob("*.py") if _literals(path)}
    assert readers == {"mpi_environment.py"}


def test_mpi_is_started_within_as_started_only():
    """Elsewhere mpi4py is imported when it runs already, or for type checkers."""
    starters = set()
    for path in (ROOT / "ist_hpc").rglob("*.py"):
        if "as_started()" in path.read_text(encoding="utf-8"):
            starters.add(path.relative_to(ROOT / "ist_hpc").as_posix())
        top = ast.parse(path.read_text(encoding="utf-8")).body
        at_once = [
            ast.unparse(node) for node in top if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        started = [line for line in at_once if re.match(r"(from|import) (mpi4py|horovod)\b", line)]
        assert not started, path
    assert starters == {"check.py", "runtime/launch.py"}


def test_check_tries_every_way_of_starting_that_the_documents_name():
    named = set()
    for document in ("README.md", "INSTALL.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for words in re.findall(r"([\w./= -]*)python -m ist_hpc\.train\b", text):
            launcher = words.split("`")[-1].split()
            named.add(launcher[0] if launcher else "python")
    assert named - {"then", "or:"} == set(WAYS)


def test_the_wheel_s_mpi_is_found_where_pip_alone_installed_it(tmp_path):
    """Not what lies beside the system's Python, and no other place than one that is given."""
    found: dict[str, str] = {}
    find_wheel(found, str(tmp_path))
    assert found == {}
    for name in ("lib/libmpi.so.40", "bin/orterun"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    find_wheel(found, str(tmp_path))
    assert found == {"OPAL_PREFIX": str(tmp_path)}
    given = {"OPAL_PREFIX": "/opt/mpi"}
    find_wheel(given, str(tmp_path))
    assert given == {"OPAL_PREFIX": "/opt/mpi"}
    system: dict[str, str] = {}
    find_wheel(system, sys.base_prefix)
    assert system == {}
