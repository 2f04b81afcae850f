"""The one exception for mistakes of a user, as opposed to mistakes of this package.

An `InputError` is an answer, not a trace: the value, what is allowed, where it was given, and
the likely fix, in one line. The entry points print it once for the whole job and end with
exit code 2; any other exception is a fault of the program and ends with a traceback.
"""

import math
import re
import types
import typing
from typing import Any

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_GO_ON = 75  # EX_TEMPFAIL of sysexits.h: stopped in order and saved; the same command goes on

_SURROGATES = (0xDC80, 0xDCFF)  # with which Python represents the bytes 0x80 to 0xFF of a name
_LINE_BREAK = re.compile(r"\s*[\n\r\v\f]\s*")  # blanks of a name stay as they are
_BYTE_IN_REPR = re.compile(r"\\udc([89a-f][0-9a-f])")  # what `printable` shows as \xe9


def printable(text: str, ascii_only: bool = False) -> str:
    r"""The text as any terminal, log or file can have it: other characters as `\xe9` or `\u20ac`.

    These are bytes of a name that is not UTF-8, and what a terminal would take for a command. With
    `ascii_only` they are all except ASCII.
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
    """The user's input cannot be used; the message is one line that says what and where."""

    def __init__(self, message: str) -> None:
        one_line = _LINE_BREAK.sub(" ", message.strip())
        super().__init__(printable(_BYTE_IN_REPR.sub(r"\\x\1", one_line)))


class UnreadableError(InputError):
    """A file exists, but the system cannot read it now: nothing is known about its content."""


def describe(hint: Any) -> str:
    """A type in words for users."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(argument) for argument in arguments)
    if origin in (list, tuple):
        count = len(arguments) if origin is tuple and Ellipsis not in arguments else None
        names = {int: "whole numbers", float: "numbers", str: "words"}
        amount = f"{count} " if count else ""
        return f"a list of {amount}{names.get(_plain(arguments[0]), 'values')}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "null")


def _plain(hint: Any) -> Any:
    """A type without its annotations."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return hint


def show(value: Any) -> str:
    """A value as an error shows it: short, with its type."""
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    if value is None:
        return "nothing"
    if isinstance(value, str) and not value:
        return f"{text} (an empty text)"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{text} (no finite number)"
    known = isinstance(value, bool | int | float | str)
    kind = describe(type(value)) if known else type(value).__name__
    return f"{text} ({kind})"
