"""Reading the pickles of published data sets without letting them run anything.

A pickle is a program. Of what it can call, only what arrays of numbers, their scalars and byte
strings need is there, and that is not numpy's own but stands for it here: checked arguments,
nothing allocated by what a pickle says rather than has. The program is looked over before it runs,
because a short one can ask for any amount of memory.
"""

import io
import math
import os
import pickle
import pickletools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ist_hpc.common.errors import InputError
from ist_hpc.prepare.file_kinds import HEAD_BYTES
from ist_hpc.prepare.found import UnusableError, opened, refused

_MOST_INSTRUCTIONS = 5_000_000  # each makes an object of some 100 bytes at the most
_MOST_UNUSUAL = 1000  # instructions that are not _USUAL: calls, and what tuples are nested by
_USUAL = frozenset(
    (
        *("MARK", "APPEND", "APPENDS", "EMPTY_LIST", "LIST"),
        *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "FRAME"),
        *("INT", "BININT", "BININT1", "BININT2", "NONE", "NEWTRUE", "NEWFALSE"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_MEMO = _PUTS | {"MEMOIZE"}
_OF_A_MARK = frozenset(
    code.name for code in pickletools.opcodes if pickletools.markobject in code.stack_before
)
_OF_KEYS = frozenset(("DICT", "SETITEMS", "FROZENSET", "ADDITEMS"))
_ARRAY_STATE_LENGTH = 5
_MOST_DTYPE_STATE = 9
_NUMBERS = re.compile("b1|[iu][1248]|f[248]")
_MOST_DIMENSIONS = 8
_FRAME_BYTES = 9  # of the instruction that begins one
_MOST_MESSAGE = 150  # characters of what a pickle says, in an error


def load_dict(path: Path, most_bytes: int) -> dict[str, Any]:
    """The dict that the file holds: keys as text, arrays of numbers as such (read-only). Local.

    Other values are what the pickle has: numbers (of numpy as Python's own), str, bytes (a str of
    Python 2, too), lists, tuples, dicts. Needs three times the file's size for a moment. Raises
    `InputError` that names the file if it is missing or larger than `most_bytes`, is no pickle or a
    damaged one, names anything that is not of plain data and arrays of numbers, or does not hold a
    dict; MemoryError.
    """
    content = _content(path, most_bytes)
    _look_over(path, content)
    loader = _Unpickler(content)
    try:
        loaded = loader.load()
    except _Refused as refusal:
        raise _refusal(path, content, str(refusal)) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged program may do anything wrong
        raise _damaged(path, content, error) from None
    if type(loaded) is not dict:
        got = "array" if isinstance(loaded, _Array) else type(loaded).__name__
        raise _refusal(path, content, f"must be the pickle of a dict (got {got})")
    return _with_text_keys(path, loaded)


def _content(path: Path, most_bytes: int) -> bytes:
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                problem = f"must have at most {most_bytes} bytes (got {size}); it is another file"
                raise _refusal(path, file.read(HEAD_BYTES), problem)
            return file.read(size)
    except UnusableError as error:
        raise refused(path, str(error)) from None
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror})") from None


def _look_over(path: Path, content: bytes) -> None:
    """Raise `InputError` for what is cut short or would take memory out of all proportion."""
    instructions = unusual = frame_end = 0
    before = ""
    since_mark = [0]  # instructions, for each mark that is open
    try:
        for instruction, argument, at in pickletools.genops(content):
            name, place = instruction.name, at or 0
            instructions += 1
            since_mark[-1] += 1
            unusual += name not in _USUAL
            if name == "REDUCE" and before == "TUPLE2":
                # A call of two arguments, such as numpy's scalars are: it holds nothing any more.
                unusual -= 2
            if name not in _MEMO:
                before = name
            if name == "MARK":
                since_mark.append(0)
            elif name in _OF_A_MARK and len(since_mark) > 1:
                within = since_mark.pop()
                if name in _OF_KEYS:  # many keys of one hash would take hours
                    unusual += within
            odd = name == "POP"  # it may take a mark away unseen; of use for what holds itself
            odd |= name in _PUTS and int(argument or 0) > instructions
            # Across the end of a frame the unpickler would not read the program that is read here.
            odd |= place > frame_end > 0 or (name == "FRAME" and place < frame_end)
            if place >= frame_end:
                frame_end = 0
            if name == "FRAME":
                frame_end = place + _FRAME_BYTES + int(argument or 0)
            if odd or instructions > _MOST_INSTRUCTIONS or unusual > _MOST_UNUSUAL:
                raise _refusal(
                    path, content, "not the pickle of a few arrays and lists; it is refused"
                )
    except (ValueError, ArithmeticError, LookupError) as error:
        raise _damaged(path, content, error) from None


def _refusal(path: Path, content: bytes, problem: str) -> InputError:
    return refused(path, problem, content[:HEAD_BYTES], own="pickle")


def _damaged(path: Path, content: bytes, error: Exception) -> InputError:
    said = _short(str(error) or type(error).__name__)
    problem = f"no pickle, or one that is cut short or damaged ({said}); unpack or copy it again"
    return _refusal(path, content, problem)


def _short(text: str) -> str:
    """On one line, without what a terminal would take for commands."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable if len(printable) <= _MOST_MESSAGE else printable[:_MOST_MESSAGE] + "..."


def _with_text_keys(path: Path, loaded: dict[Any, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        name = key.decode("latin-1") if isinstance(key, bytes) else key
        if not isinstance(name, str) or name in values:
            raise refused(path, "its keys must be different texts")
        if isinstance(value, _Array) and value.values is None:
            raise refused(path, f"`{_short(name)}` is an array without values")
        values[name] = value.values if isinstance(value, _Array) else value
    return values


class _Refused(pickle.UnpicklingError):
    """What a pickle asks for and does not get; the message is for users."""


class _Unpickler(pickle.Unpickler):
    """Finds nothing but the names that arrays are pickled with, and no object of numpy."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._room = len(content)

    def find_class(self, module: str, name: str) -> Any:
        """What stands for `module.name`."""
        if (module, name) == ("_codecs", "encode"):
            return _Callable(self._encode)
        if (module, name) not in _FOUND:
            raise _Refused(
                f"names {_short(f'{module}.{name}')}, which is no part of plain data and arrays of "
                "numbers; it is refused"
            )
        return _FOUND[module, name]

    def _encode(self, text: str, encoding: str) -> bytes:
        """Byte strings as Python 3 writes them for Python 2."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise _Refused("has text in another encoding than latin1")
        # Every text is in the file once; a program that has one encoded again and again is none
        # that a pickler writes.
        self._room -= len(text)
        if self._room < 0:
            raise _Refused("makes byte strings that are longer than the file; it is refused")
        return text.encode("latin1")


class _Callable:
    """A function that a pickle may call. It cannot be changed: a pickle may try to."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise _Refused("gives a state to a function; it is refused")


class _Dtype:
    """A type that elements may have: kind and size, such as i8, and the order of its bytes."""

    __slots__ = ("name", "order")

    def __init__(self, name: str) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if type(state) is not tuple or not 2 <= len(state) <= _MOST_DTYPE_STATE:
            raise _not_numpy()
        order = state[1]
        if order not in ("<", ">", "|", b"<", b">", b"|"):
            raise _not_numpy()
        self.order = "<" if order in ("<", b"<") else ">" if order in (">", b">") else "|"

    def as_numpy(self) -> np.dtype[Any]:
        """The type itself; nothing that a pickle says goes into it but what was checked."""
        return np.dtype(f"{self.order}{self.name}")


class _Array:
    """An array that a pickle makes first, and fills in when it gives it a state."""

    __slots__ = ("values",)

    def __init__(self, values: npt.NDArray[Any] | None = None) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != _ARRAY_STATE_LENGTH:
            raise _not_numpy()
        _version, shape, dtype, by_columns, content = state
        self.values = _values(content, dtype, shape, "F" if by_columns else "C")


def _not_numpy() -> _Refused:
    return _Refused("has an array that is not as numpy writes one; it is refused")


def _ndarray(*arguments: Any) -> NoReturn:
    raise _not_numpy()  # numpy names the type, and does not call it


# Calls of two arguments may be many, and none of them may take what holds itself or is nested: so
# these have exactly the arguments that numpy gives them.
def _dtype(name: Any, _align: Any, _copy: Any) -> _Dtype:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not _NUMBERS.fullmatch(text):
        raise _Refused(f"has an array of {_short(str(text))}, must be of numbers")
    return _Dtype(text)


def _scalar(dtype: Any, content: Any) -> int | float | bool:
    """A number as numpy has it; as Python's own."""
    if not isinstance(dtype, _Dtype) or type(content) is not bytes:
        raise _not_numpy()
    kind = dtype.as_numpy()
    if len(content) != kind.itemsize:
        raise _not_numpy()
    number: int | float | bool = np.frombuffer(content, dtype=kind)[0].item()
    return number


def _reconstruct(_type: Any, _shape: Any, _kind: Any) -> _Array:
    """An array without values, whatever type and shape it is to begin with."""
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(_values(content, dtype, shape, order))


def _values(content: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    """A view of the bytes: an array has as many elements as there are in the file."""
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise _not_numpy()
    if type(shape) is not tuple or not 1 <= len(shape) <= _MOST_DIMENSIONS:
        raise _not_numpy()
    # No size that numpy has not: a pickle has numbers whose product takes days.
    if any(type(size) is not int or not 0 <= size <= sys.maxsize for size in shape):
        raise _not_numpy()
    if order not in ("C", "F"):
        raise _not_numpy()
    kind = dtype.as_numpy()
    if math.prod(shape) * kind.itemsize != len(content):
        raise _Refused(f"has an array of shape {_short(str(shape))} with {len(content)} bytes")
    return np.frombuffer(content, dtype=kind).reshape(shape, order=order)


_FOUND = {
    ("numpy", "ndarray"): _Callable(_ndarray),
    ("numpy", "dtype"): _Callable(_dtype),
    **{
        (f"numpy.{core}.{module}", name): _Callable(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""What arrays are pickled with, by numpy up to 1.x and from 2.0 on; `_frombuffer` by protocol 5."""
