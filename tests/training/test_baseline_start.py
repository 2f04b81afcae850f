"""Baselines start their own networking: what the environment says wrong of it is one line.

Most inputs are tried one after the other by the same ranks, who start anew after each refusal.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT, one_error_line, run_ranks
from tests.helpers.small_runs import SMALL, command

pytestmark = pytest.mark.long

HOSTS = str(ROOT / "bench" / "hosts.sh")
SILENCE_S = 20

TRY = f"""\
import argparse, json, os, socket, sys

from ist_hpc.runtime.ending import end
from ist_hpc.runtime.launch import AgreedInputError, launch

def body(runtime, arguments):
    if sys.argv[1] == "ddp":
        from ist_hpc.training.algorithms.ddp import join as start
    else:
        from ist_hpc.runtime.horovod_start import start_horovod as start
    here = (str(runtime.rank), socket.gethostname())
    for wanted in json.loads(sys.argv[2]):
        # a variable, of all ranks, or @ one rank or host
        mine = {{key.partition("@")[0]: value for key, value in wanted.items()
                if key.partition("@")[2] in ("", *here)}}
        before = dict(os.environ)
        os.environ.update(mine)
        try:
            start(runtime.comm, {SILENCE_S})
            said = "started"
        except AgreedInputError as error:
            said = str(error)
        if runtime.rank == 0:
            print(json.dumps(said), flush=True)
        for key in mine:
            os.environ.pop(key, None)
        os.environ.update(before)
    if sys.argv[1] == "ddp":
        import torch
        ranks = torch.ones(3)
        torch.distributed.all_reduce(ranks)
        assert ranks.tolist() == [runtime.ranks] * 3

end(launch("try", argparse.Namespace, body))
"""
"""Starts with each of some environments, of which the last must do, and prints what was said."""

DDP = [
    ({"GLOO_SOCKET_IFNAME": "nosuch0"}, ["GLOO_SOCKET_IFNAME is nosuch0", "lo (127.0.0.1)"]),
    ({"GLOO_SOCKET_IFNAME@1": "nosuch0"}, ["GLOO_SOCKET_IFNAME is nosuch0", "unset it"]),
    ({"GLOO_SOCKET_IFNAME": "lo,nosuch0"}, ["is lo,nosuch0", "there is none of that name"]),
    ({"GLOO_SOCKET_IFNAME": "lo/../x"}, ["is lo/../x", "there is none of that name"]),
    ({"GLOO_SOCKET_IFNAME@1": "lo,lo"}, ["as many interfaces", "lo (127.0.0.1) on"]),
    ({"MASTER_ADDR": "no.such.name.invalid"}, ["MASTER_ADDR is no.such.name.invalid", "resolve"]),
    ({"MASTER_ADDR": "127.0.0.1:29500"}, ["MASTER_ADDR is 127.0.0.1:29500", "cannot resolve"]),
    ({"MASTER_ADDR": "a..b"}, ["MASTER_ADDR is a..b", "no name of a host"]),
    ({"MASTER_ADDR": "10.255.255.1"}, ["10.255.255.1, which is no address of", "lo (127.0.0.1)"]),
    ({"MASTER_ADDR": "2001:db8::1"}, ["2001:db8::1, which is no address of", "unset it"]),
    ({"TORCH_GLOO_LAZY_INIT@1": "abc"}, ["TORCH_GLOO_LAZY_INIT is abc", "unset"]),
    (
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "abc",
            "RANK": "7",
            "WORLD_SIZE": "99",
            "LOCAL_RANK": "x",
            "GLOO_SOCKET_IFNAME@0": "",
            "GLOO_SOCKET_IFNAME@1": " lo,",
            "GLOO_DEVICE_TRANSPORT": "",
            "GLOO_LOG_LEVEL": "nonsense",
            "http_proxy": "http://10.255.255.1:3128",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        },
        ["started"],
    ),
]

HOROVOD = [
    ({"HOROVOD_CONTROLLER": "nonsense"}, ["HOROVOD_CONTROLLER is nonsense, allowed: mpi"]),
    ({"HOROVOD_CPU_OPERATIONS@1": "nccl"}, ["is nccl, allowed: mpi, gloo, ccl; unset it"]),
    ({"HOROVOD_CYCLE_TIME": "abc"}, ["HOROVOD_CYCLE_TIME is abc, the milliseconds"]),
    ({"HOROVOD_CYCLE_TIME": "1e6"}, ["less than runtime.silence_s (20 s)"]),
    ({"HOROVOD_CYCLE_TIME": "nan"}, ["HOROVOD_CYCLE_TIME is nan"]),
    ({"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "abc"}, ["is abc, a whole number from 0"]),
    ({"HOROVOD_STALL_CHECK_TIME_SECONDS@1": "-1"}, ["is -1, a whole number from 0"]),
    ({"HOROVOD_CACHE_CAPACITY": "-5"}, ["is -5, a whole number from 0 to 1000000"]),
    ({"HOROVOD_FUSION_THRESHOLD": "9" * 5000}, ["999, a whole number from 0 to 2147483647"]),
    ({"HOROVOD_AUTOTUNE": "yes"}, ["HOROVOD_AUTOTUNE is yes"]),
    ({"HOROVOD_THREAD_AFFINITY": "abc"}, ["HOROVOD_THREAD_AFFINITY is abc", "2 rank(s)"]),
    ({"HOROVOD_THREAD_AFFINITY": "0"}, ["a core for each of the 2 rank(s)"]),
    ({"HOROVOD_THREAD_AFFINITY": "0,999999"}, ["HOROVOD_THREAD_AFFINITY is 0,999999"]),
    ({"HOROVOD_TIMELINE": "nosuch/t.json"}, ["HOROVOD_TIMELINE is nosuch/t.json"]),
    ({"HOROVOD_TIMELINE": "."}, ["HOROVOD_TIMELINE is ., a file that cannot be written"]),
    (
        {
            "HOROVOD_RANK": "5",
            "HOROVOD_SIZE": "9",
            "HOROVOD_LOCAL_RANK": "3",
            "HOROVOD_GLOO_IFACE": "nosuch0",
            "HOROVOD_LOG_LEVEL": "nonsense",
            "HOROVOD_CPU_OPERATIONS": "",
            "HOROVOD_TIMELINE": "",
            "HOROVOD_CACHE_CAPACITY": " 100",
        },
        ["started"],
    ),
]


def said(printed: str, tries: list[tuple[dict[str, str], list[str]]]) -> None:
    """Compare what was said with what was to be said of each try."""
    lines = [json.loads(line) for line in printed.splitlines()]
    assert len(lines) == len(tries)
    for line, (environment, words) in zip(lines, tries, strict=True):
        for word in words:
            assert word in line, environment


def tried(algorithm: str, tries: list[tuple[dict[str, str], list[str]]]) -> list[str]:
    return ["-c", TRY, algorithm, json.dumps([environment for environment, _ in tries])]


@pytest.fixture(autouse=True)
def nothing_inherited(monkeypatch):
    """The tests' own environment may have such variables."""
    for name in list(os.environ):
        if name.startswith(("GLOO_", "HOROVOD_", "MASTER_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(("algorithm", "tries"), [("ddp", DDP), ("horovod", HOROVOD)])
def test_what_the_environment_says_wrong_is_said_in_one_line(algorithm, tries, tmp_path):
    done = run_ranks(2, tried(algorithm, tries), tmp_path, timeout_s=240)
    said(done.stdout, tries)
    assert done.stderr == ""  # no log of torch's or Horovod's


@pytest.mark.parametrize(
    ("algorithm", "environment", "words"),
    [
        ("ddp", {"GLOO_SOCKET_IFNAME": "nosuch0"}, "GLOO_SOCKET_IFNAME is nosuch0"),
        ("ddp", {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}, "set it to INFO or OFF"),
        ("ddp", {"GLOO_DEVICE_TRANSPORT": "nonsense"}, "GLOO_DEVICE_TRANSPORT is nonsense"),
        ("local_sgd", {"TORCH_DISTRIBUTED_DEBUG": "abc"}, "takes OFF, INFO or DETAIL"),
        ("local_sgd", {"HOROVOD_CYCLE_TIME": "abc"}, "HOROVOD_CYCLE_TIME is abc"),
    ],
)
def test_a_run_is_refused_once_and_leaves_nothing(algorithm, environment, words, digits, tmp_path):
    settings = [*SMALL, f"data.path={digits}", f"train.algorithm={algorithm}"]
    settings += [f"runtime.silence_s={SILENCE_S}"]
    done = run_ranks(2, command("a", *settings), tmp_path, env=environment, check=False)
    assert words in one_error_line(done)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    from ist_hpc.prepare.digits import prepare_digits

    path = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(path)
    return path


ON_HOSTS = [
    ({"GLOO_SOCKET_IFNAME@h2": "nosuch0"}, ["is nosuch0 on h2", "e2 (10.9.0.2)"]),
    ({"GLOO_SOCKET_IFNAME@h2": "down0"}, ["is down0 on h2, but down0 is down"]),
    ({"GLOO_SOCKET_IFNAME@h2": "bare0"}, ["is bare0 on h2, but bare0 has no address"]),
    ({"GLOO_SOCKET_IFNAME@h2": "aside0"}, ["h1 cannot reach h2 at 10.77.0.1", "on aside0"]),
    ({"GLOO_SOCKET_IFNAME@h2": "six0"}, ["six0 (fd77::1) on h2", "of the same family"]),
    ({"GLOO_SOCKET_IFNAME": "lo"}, ["is lo on h1, but it leads to no other host"]),
    ({"MASTER_ADDR": "10.9.0.2"}, ["10.9.0.2, which is no address of h1, where rank 0 is"]),
    ({"MASTER_ADDR": "127.0.0.1"}, ["h2 cannot reach rank 0 on h1 at 127.0.0.1", "MASTER_ADDR"]),
    ({"MASTER_ADDR@h2": "of.another.job"}, ["started"]),  # rank 0's counts
]


@pytest.fixture
def two_hosts(own_hosts):
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("network namespaces need root and iproute2 (ip, tc)")
    subprocess.run([HOSTS, "up", "2", "1gbit"], check=True, timeout=60)
    for name, *more in (
        ("down0", "addr add 10.78.0.1/24 dev down0"),
        ("bare0", "link set bare0 addrgenmode none", "link set bare0 up"),
        ("aside0", "addr add 10.77.0.1/24 dev aside0", "link set aside0 up"),
        ("six0", "addr add fd77::1/64 dev six0 nodad", "link set six0 up"),
    ):
        for words in (f"link add {name} type veth peer name p{name}", *more):
            second = f"{os.environ['HOSTS_NAME']}-h2"
            subprocess.run(["ip", "-n", second, *words.split()], check=True, timeout=20)
    yield
    subprocess.run([HOSTS, "down"], check=True, timeout=60)


def on_two_hosts(args: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    tools = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [HOSTS, "mpirun", "2", "env", "OMP_NUM_THREADS=1", sys.executable, *args],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_what_one_host_of_two_says_wrong_is_said(two_hosts, digits, tmp_path):
    done = on_two_hosts(tried("ddp", ON_HOSTS), tmp_path)
    assert done.returncode == 0, done.stderr
    said(done.stdout, ON_HOSTS)
    assert done.stderr == ""
    settings = [*SMALL, f"data.path={digits}", "train.algorithm=ddp", "train.epochs=1"]
    done = on_two_hosts(command("a", *settings), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finished" in (tmp_path / "runs" / "a" / "STATUS").read_text()
    assert "c10d" not in done.stderr


def calls(path: Path) -> list[tuple[str, int, str]]:
    """(top-level function, line, what is called) of a module."""
    return [
        (function.name, call.lineno, ast.unparse(call.func))
        for function in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(function, ast.FunctionDef | ast.ClassDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
    ]


def test_starts_pass_through_their_checks():
    package = ROOT / "ist_hpc"
    sources = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    of_torch = [name for name, path in sources.items() if "torch.distributed" in path.read_text()]
    assert of_torch == ["training/algorithms/ddp.py"]
    starts = {
        "dist.init_process_group": ("training/algorithms/ddp.py", "join", "_checked_way"),
        "dist.TCPStore": ("training/algorithms/ddp.py", "join", "_checked_way"),
        "hvd.init": ("runtime/horovod_start.py", "start_horovod", "refuse_settings"),
    }
    found = []
    for name, path in sources.items():
        if name == "check.py":  # it looks at an installation, before any run
            continue
        of_module = calls(path)
        for function, line, called in of_module:
            if called in starts:
                *place, check = starts[called]
                assert [name, function] == place
                assert any(
                    (where, what) == (function, check) and at < line
                    for where, at, what in of_module
                )
                found.append(called)
    assert sorted(found) == sorted(starts)
