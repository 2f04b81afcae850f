"""Tests of this folder run under mpirun, the same body at 1, 2, 3 and 4 ranks.

A rank that fails cannot tell the others, which may wait for it in MPI: it prints its report and
aborts the job. A rank that hangs is ended, with its stack, after a time limit; that ends the job.
"""

import faulthandler
import sys

import pytest

LIMIT_S = 90


@pytest.fixture(scope="session")
def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture(scope="session", params=["Horovod", "MPI.Allreduce"])
def averages(world, request):
    """Horovod's, and what stands in for it where it is not installed."""
    from ist_hpc.training import averaging

    return (
        averaging.start(world, 30) if request.param == "Horovod" else averaging.MpiAverages(world)
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What needs Horovod comes last: its thread takes as much as a core from when it is started."""

    def place(item):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return [None, "MPI.Allreduce", "Horovod"].index(parameters.get("averages"))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def limited(world):
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=sys.__stderr__)
    yield
    world.Barrier()
    faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report):
    if not report.failed:
        return
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    place = f"rank {world.Get_rank()} of {world.Get_size()}"
    print(
        f"\n{place}: {report.nodeid} failed\n{report.longreprtext}", file=sys.__stderr__, flush=True
    )
    if world.Get_size() > 1:
        world.Abort(1)
