"""The one exception for mistakes of a user, as opposed to mistakes of this package.

An `InputError` is an answer, not a trace: what was got, what is allowed, where it stands, and
the likely fix, in one line. The entry points print it once for the whole job and end with
exit code 2; anything else that is raised is a fault of the program and ends with a traceback.
"""

import re

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_GO_ON = 75  # EX_TEMPFAIL of sysexits.h: stopped in order and saved; the same command goes on

_SURROGATES = (0xDC80, 0xDCFF)  # by which Python carries the bytes 0x80 to 0xFF of a name
_LINE_BREAK = re.compile(r"\s*[\n\r\v\f]\s*")  # blanks of a name stay as they are
_BYTE_IN_REPR = re.compile(r"\\udc([89a-f][0-9a-f])")  # what `printable` shows as \xe9


def printable(text: str, ascii_only: bool = False) -> str:
    r"""The text as any terminal, log or file can have it: other characters as `\xe9` or `\u20ac`.

    Those are: a byte of a name that is not UTF-8, and what a terminal would take for a command.
    With `ascii_only` all but ASCII.
    """
    if text.isprintable() and not (ascii_only and not text.isascii()):
        return text
    return "".join(_shown(character, ascii_only) for character in text)


def _shown(character: str, ascii_only: bool) -> str:
    code = ord(character)
    if character.isprintable() and (code < 0x80 or not ascii_only):
        return character
    if _SURROGATES[0] <= code <= _SURROGATES[1]:
        return f"\\x{code - 0xDC00:02x}"
    return (
        character.encode("ascii", "backslashreplace").decode() if code > 0x7F else f"\\x{code:02x}"
    )


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line that says what and where."""

    def __init__(self, message: str) -> None:
        one_line = _LINE_BREAK.sub(" ", message.strip())
        super().__init__(printable(_BYTE_IN_REPR.sub(r"\\x\1", one_line)))


class UnreadableError(InputError):
    """A file that is there, and that the system does not read now: nothing is known of it."""
