"""Reading HDF5 files that anybody may have written: what is wrong with one is an `InputError`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from ist_hpc.common.errors import InputError, show

# What h5py raises for a damaged file; the last two are of sizes that it only claims.
_OF_DAMAGE = (
    OSError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)
ADVICE = "the checkpoint is damaged; copy it again or use another"


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises for a damaged file into an `InputError` that names the file."""
    try:
        yield
    except _OF_DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read ({_first_line(error)}); the file is damaged or another kind "
            "of file; copy it again or use another"
        ) from None


class Attributes:
    """The attributes of a file, each of the type and in the range that it must have.

    Anything can stand in a file: methods raise `InputError` that says what, and what must.
    """

    def __init__(self, path: Path, attributes: h5py.AttributeManager) -> None:
        self._path, self._attributes = path, attributes

    def text(self, name: str, form: re.Pattern[str] | None = None, allowed: str = "a text") -> str:
        """A text, of this form if one is given."""
        value = self._value(name)
        good = isinstance(value, str) and is_encodable(value)
        if not good or (form is not None and form.fullmatch(value) is None):
            self._refuse(name, value, allowed)
        return str(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._value(name)
        if not isinstance(value, np.bool_):
            self._refuse(name, value, "true or false")
        return bool(value)

    def count(self, name: str, low: int, high: int) -> int:
        """A whole number."""
        value = self._value(name)
        if not isinstance(value, np.integer) or not low <= int(value) <= high:
            self._refuse(name, value, f"a whole number, {low} to {high}")
        return int(value)

    def number(self, name: str, low: float, high: float) -> float:
        """A number; NaN is in no range."""
        value = self._value(name)
        if not isinstance(value, np.floating) or not low <= value <= high:
            self._refuse(name, value, f"a number, {low:g} to {high:g}")
        return float(value)

    def names(self, name: str, count: int) -> tuple[str, ...]:
        """A JSON list of so many texts, or of none."""
        value = self.text(name)
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        good = isinstance(found, list) and len(found) in (0, count)
        if not good or not all(isinstance(item, str) and is_encodable(item) for item in found):
            self._refuse(name, value, f"a JSON list of {count} names, or an empty one")
        return tuple(found)

    def must_be(self, name: str, wanted: int | str, otherwise: str) -> None:
        """Raise `InputError`, which ends with `otherwise`, unless there is this value."""
        value = self._value(name)
        kind = str if isinstance(wanted, str) else np.integer
        if not isinstance(value, kind) or value != wanted:
            self._refuse(name, value, str(wanted), otherwise)

    def _value(self, name: str) -> Any:
        with reporting(self._path):
            if name not in self._attributes:
                raise InputError(f"{self._path}: has no attribute `{name}`; {ADVICE}")
            return self._attributes[name]

    def _refuse(self, name: str, got: Any, allowed: str, otherwise: str = ADVICE) -> NoReturn:
        plain = got.item() if isinstance(got, np.generic) else got
        raise InputError(
            f"{self._path}: attribute `{name}` must be {allowed}, got {show(plain)}; {otherwise}"
        )


def is_encodable(text: str) -> bool:
    """Whether it is Unicode: h5py and JSON give halves of characters for what is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
