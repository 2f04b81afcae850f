"""Reads the pickles of published data sets without letting them run anything.

A pickle is a program. It can call only what arrays of numbers, their scalars and byte strings
need. See "What a file may do" in docs/reliability.md.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ist_hpc.prepare.found import UnusableError, head_of, opened, refused

_MOST_SHOWN = 150  # characters of what a file says, in a message


def load_dict(path: Path, most_bytes: int) -> dict[str, Any]:
    """The dict that the file holds: keys as text, arrays of numbers as such. Local.

    Other values keep their types: numbers (numpy's become Python's own), str, bytes (also a str of
    Python 2), lists, tuples, dicts. Raises `InputError` that names the file if it is missing,
    larger than `most_bytes`, damaged, not a pickle or one of something else. May raise MemoryError:
    for a moment it needs three times the file's size.
    """
    head = None
    try:
        with opened(path) as file:
            head, size = head_of(file), os.fstat(file.fileno()).st_size
            if size > most_bytes:
                limit = f"must have at most {most_bytes} bytes (got {size})"
                raise UnusableError(f"{limit}; it is another file")
            content = io.BytesIO(file.read())
        loaded = _Unpickler(content, encoding="bytes").load()
        if type(loaded) is not dict:
            got = "array" if isinstance(loaded, _Array) else type(loaded).__name__
            raise UnusableError(f"must be the pickle of a dict (got {got})")
        texts = [_text(key) for key in loaded]
        if len(set(texts)) != len(texts) or not all(isinstance(text, str) for text in texts):
            raise UnusableError("its keys must be different texts")
        return dict(zip(texts, loaded.values(), strict=True))
    except MemoryError:
        raise
    except UnusableError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except Exception as error:  # a damaged program may raise anything
        said = str(error)[:_MOST_SHOWN] or type(error).__name__
        problem = f"no pickle, or one that is cut short or damaged ({said})"
        problem += "; unpack or copy it again"
    raise refused(path, problem, head, own="pickle")


class _Dtype:
    """Replaces numpy's dtype, whose state could make it treat the bytes of a file as objects."""

    def __init__(self, name: str | bytes, _align: object, _copy: object) -> None:
        self.numpy = np.dtype(_text(name))
        if self.numpy.kind not in "biuf":
            raise UnusableError(f"has an array of {_text(name)}, must be of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(_text(state[1]))

    def read(self, content: bytes) -> np.ndarray[Any, np.dtype[Any]]:
        return np.frombuffer(content, self.numpy)


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array of numbers, which receives its values as its state."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, by_columns, content = state
        super().__setstate__((version, shape, dtype.numpy, by_columns, content))


def _text(word: Any) -> Any:
    return word.decode("latin-1") if isinstance(word, bytes) else word


_FOUND = {
    "numpy.ndarray": None,  # named beside `_reconstruct`, never called
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": lambda kind, shape, code: _Array(0, np.uint8),
    "numpy.core.multiarray.scalar": lambda dtype, content: dtype.read(content).item(),
    "numpy.core.numeric._frombuffer": lambda content, dtype, shape, order: (  # protocol 5
        dtype.read(content).reshape(shape, order=order)
    ),
    # Byte strings as Python 3 writes them for Python 2, always in Latin-1.
    "_codecs.encode": lambda text, encoding: text.encode("latin-1"),
}


class _Unpickler(pickle._Unpickler):
    """Python's own, not the one in C, which allocates all memory that a damaged number claims."""

    # Python's own does so here alone; a byte string has the same form.
    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]]
    }

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of `module.name`."""
        found = f"{module}.{name}"
        known = found.replace("numpy._core.", "numpy.core.")  # its name from numpy 2.0 on
        if known not in _FOUND:
            problem = "which is no part of plain data and arrays of numbers; it is refused"
            raise UnusableError(f"names {found[:_MOST_SHOWN]}, {problem}")
        return _FOUND[known]
