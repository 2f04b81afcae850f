"""What STATUS, and stderr, say of how a run ends."""

import socket

from ist_hpc.runtime.launch import AgreedInputError, AgreedRunError, say
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.runtime.stopping import name_of


def record_stop(folder: RunFolder, stopped_by: int, rounds: int, is_saved: bool) -> None:
    """Write and say that the run stopped in order, and what goes on with it. On rank 0.

    stopped_by  the signal that asked for it
    """
    saved = f"saved after round {rounds}" if is_saved else "before its first round"
    status = f"stopped: {name_of(stopped_by)}, {saved}"
    folder.set_status(status)
    name = f" --name {folder.path.name}" if folder.or_beside else ""  # else it is given
    say(f"train: {status}; the same command with --resume{name} goes on")


def record_silence(folder: RunFolder, reason: str) -> None:
    """Say why a run ends in which nothing goes on: the first that finds it, and once a host."""
    is_of_this_start = folder.is_of_this_start()  # and not another's still, or already
    # The first of all may be on the host that is cut off, from which no line comes.
    if not is_of_this_start or folder.first_to_fail(socket.gethostname()):
        say(f"train: failed: {reason}")
    if is_of_this_start and folder.first_to_fail():
        folder.set_status(f"failed: {reason}")


def record_failure(folder: RunFolder, rank: int, error: BaseException) -> None:
    """Write why the run ends, if it is in its folder. Rank 0 writes an error of all ranks."""
    if not folder.is_of_this_start():
        return
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, AgreedInputError | AgreedRunError | KeyboardInterrupt):
        stopped = isinstance(error, KeyboardInterrupt)
        # A rank that fails ends the others by a signal, which is not the reason to keep.
        if rank == 0 and not (stopped and folder.status().startswith("failed")):
            folder.set_status(f"{'stopped' if stopped else 'failed'}: {reason}")
    else:
        folder.set_status(f"failed: rank {rank}: {reason}")
