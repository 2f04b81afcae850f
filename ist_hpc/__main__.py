"""`ist-hpc COMMAND`, and `python -m ist_hpc COMMAND`: the same as `python -m ist_hpc.COMMAND`."""

import difflib
import runpy
import signal
import sys

from ist_hpc import __version__
from ist_hpc.common.disk.names import quoted
from ist_hpc.common.errors import EXIT_BAD_INPUT
from ist_hpc.common.mpi_environment import rank_of_launcher
from ist_hpc.common.standard_streams import complain
from ist_hpc.runtime.ending import run

COMMANDS = {
    "prepare": "make a data set's HDF5 shards",
    "plan": "what a run will take: memory, bytes, seconds, before it is started",
    "train": "train a network, on as many ranks as the launcher starts",
    "evaluate": "evaluate a checkpoint, or an ensemble of them",
    "show": "look into a run, a checkpoint or shards; export a PyTorch module",
    "plot": "curves of runs, tables and the pictures of studies",
    "bench": "measure: exchange, saving, scaling, convergence",
    "quadratic": "independent subnets on quadratics, against their theory",
    "check": "do MPI, Horovod and HDF5 work together here?",
}
"""The purpose of each command."""


def main() -> int:
    """Become the named command. Returns only if none is named."""
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        _say(f"ist_hpc {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        _say(_listing())
        return 0 if words else EXIT_BAD_INPUT
    name = words[0]
    if name not in COMMANDS:
        if rank_of_launcher() == 0:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            allowed = ", ".join(COMMANDS)
            complain(f"ist-hpc: error: no command {quoted(name)}{hint}; there are {allowed}")
        return EXIT_BAD_INPUT
    del sys.argv[1]
    runpy.run_module(f"ist_hpc.{name}", run_name="__main__", alter_sys=True)
    raise AssertionError(f"{name} ends the process")


def script() -> None:
    """The entry point `ist-hpc` that an installation makes."""
    # as `ist_hpc` does for `python -m`: until a command has begun a Ctrl-C just ends it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    run("ist-hpc", main)


def _listing() -> str:
    lines = ["usage: ist-hpc COMMAND ...   or   python -m ist_hpc.COMMAND ...", ""]
    lines += [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    lines += ["", "ist-hpc COMMAND --help says more. On several ranks:"]
    return "\n".join([*lines, "  horovodrun -np 4 ist-hpc train   or   mpirun -np 4 ist-hpc train"])


def _say(text: str) -> None:
    if rank_of_launcher() == 0:
        print(text)


if __name__ == "__main__":
    script()
