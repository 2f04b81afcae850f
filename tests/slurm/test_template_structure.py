"""What holds for all lines of slurm/: what one function knows, no other place takes for granted."""

import re
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT

SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sh"), *(ROOT / "slurm").glob("*.sbatch")])
JOB = ROOT / "slurm/job.sh"
# set by the site, the user or a template, and no path
NO_PATHS = {"LAUNCHER", "MAX_REQUEUES", "LEAD_TIME_S", "DEVICE", "METHODS", "NAME"}


def _lines(path: Path) -> list[tuple[str, str]]:
    """The function and the text of each line of code; comments are left out."""
    function, found = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if begins := re.match(r"([a-z_]+)\(\) \{", line):
            function = begins[1]
        code = re.sub(r"(^|\s)#.*", "", line)
        if code.strip():
            found.append((function, code))
        if line == "}":
            function = ""
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_variable_of_slurm_is_taken_for_granted(path):
    """`salloc` and some sites leave out what sbatch sets."""
    for function, line in _lines(path):
        for name in re.findall(r"\$\{?#?(SLURM_\w+)(?!\w|:?-)", line):
            # known to be there by a line above it
            known = {
                "count_ranks": ("SLURM_NTASKS", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
                "job_id": ("SLURM_ARRAY_JOB_ID",),
            }
            assert name in known.get(function, ()), line


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_one_function_knows_how_many_ranks_there_are_and_one_which_job_it_is(path):
    tasks = r"SLURM_(NTASKS|NPROCS|TASKS_PER_NODE|NTASKS_PER_NODE|NNODES|JOB_NUM_NODES)\b"
    job = r"SLURM_(JOB_?ID|ARRAY_JOB_ID)\b"
    task = r"SLURM_ARRAY_TASK_ID\b"
    for function, line in _lines(path):
        assert function == "count_ranks" or not re.search(tasks, line), line
        may = ("find_task", "job_id", "count_ranks")
        assert function in may or not re.search(f"{job}|{task}", line), line
        if re.search(r"\bscontrol (show|requeue)", line):
            assert re.search(r'"\$(id|job)"', line) or function == "find_task", line


def test_the_job_that_scontrol_is_asked_of_is_that_of_the_function():
    for name, variable in (("show_job", "job"), ("queue_again", "id")):
        body = [line for function, line in _lines(JOB) if function == name]
        given = [line.strip() for line in body if re.match(rf"\s*{variable}=", line)]
        assert given == [f"{variable}=$(job_id)"], name
        assert any(re.search(rf'scontrol .*"\${variable}"', line) for line in body), name


def test_every_setting_is_a_path_of_the_list_or_no_path():
    (words,) = re.findall(r"^PATHS=\((.*?)\)", JOB.read_text(encoding="utf-8"), re.MULTILINE)
    paths = set(words.split())
    example = (ROOT / "slurm/env.sh.example").read_text(encoding="utf-8")
    found = set(re.findall(r"^([A-Z_]+)=\$\{\1:-", example, re.MULTILINE))
    for path in SCRIPTS:
        for _, line in _lines(path):
            found |= set(re.findall(r"(?:^|\s)([A-Z_]+)=\$\{\1:?-", line))
        for option in re.findall(r"take_arguments ((?:--[a-z]+ )+)--", path.read_text("utf-8")):
            found |= {word.removeprefix("--").upper() for word in option.split()}
    assert {"DATA_ROOT", "VENV", "TEXT", "CONFIG", "RUNS"} <= found
    assert not paths & NO_PATHS
    assert found - NO_PATHS <= paths, "a path goes into PATHS of job.sh, others into NO_PATHS here"


def test_paths_are_expanded_where_they_come_in():
    bodies: dict[str, str] = {}
    for function, line in [*_lines(JOB), *_lines(ROOT / "slurm/submit.sh")]:
        bodies[function] = bodies.get(function, "") + line + "\n"
    assert "expand_paths" in bodies["take_arguments"]
    assert "$(expanded " in bodies["expand_paths"]
    assert "$(expanded " in bodies["find_data"]
    assert "$(expanded " in bodies["file"]
    for path in SCRIPTS:
        code = "\n".join(line for _, line in _lines(path))
        if "begin " in code and path.suffix == ".sbatch":  # VENV is expanded before it is used
            assert code.index("take_arguments ") < code.index("\nbegin "), path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_one_function_prepares_and_one_prints_names(path):
    for function, line in _lines(path):
        calls = "python -m ist_hpc.prepare" in line and "`" not in line
        assert not calls or (function == "prepare" and "--if-missing" in line), line
        # what stands in a name may be a command of the terminal
        prints = re.search(r"\becho\b.*\$\{?(CONFIG|config|RUNS|NAME|DATA|PWD|template|\*)\b", line)
        assert not prints or "no slurm/job.sh" in line, line
