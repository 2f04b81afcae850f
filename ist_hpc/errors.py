"""The one exception for mistakes of a user, as opposed to mistakes of this package.

An `InputError` is an answer, not a trace: what was got, what is allowed, where it stands, and
the likely fix, in one line. The entry points print it once for the whole job and end with
exit code 2; anything else that is raised is a fault of the program and ends with a traceback.
"""

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_GO_ON = 75  # EX_TEMPFAIL of sysexits.h: stopped in order and saved; the same command goes on


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line that says what and where."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UnreadableError(InputError):
    """A file that is there, and that the system does not read now: nothing is known of it."""
