"""What STATUS and stderr say about the end of a run."""

import socket

from ist_hpc.runtime.launch import AgreedInputError, AgreedRunError, say
from ist_hpc.runtime.run_folder.folder import RunFolder
from ist_hpc.runtime.stopping import name_of


def record_stop(folder: RunFolder, stopped_by: int, rounds: int, is_saved: bool) -> None:
    """Write and print that the run stopped in order, and how to continue it. On rank 0.

    stopped_by  the signal that asked for it
    """
    saved = f"saved after round {rounds}" if is_saved else "before its first round"
    status = f"stopped: {name_of(stopped_by)}, {saved}"
    folder.set_status(status)
    name = f" --name {folder.path.name}" if folder.or_beside else ""  # else the user gave it
    say(f"train: {status}; the same command with --resume{name} goes on")


def record_silence(folder: RunFolder, reason: str) -> None:
    """Say why a run without progress ends: on the first rank that finds it, and once per host."""
    is_of_this_start = folder.is_of_this_start()  # not still, or already, of another start
    # The first of all may be on the host that is cut off, whose lines do not arrive.
    if not is_of_this_start or folder.first_to_fail(socket.gethostname()):
        say(f"train: failed: {reason}")
    if is_of_this_start and folder.first_to_fail():
        folder.set_status(f"failed: {reason}")


def record_failure(folder: RunFolder, rank: int, error: BaseException) -> None:
    """Write why the run ends, if it has entered its folder. Rank 0 writes an error of all ranks."""
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
