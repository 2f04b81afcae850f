"""Names of files as users write them and as they are on disk: bytes, most of them text.

Python represents bytes that are not UTF-8 as surrogates (`surrogateescape`). These open the file
but can be neither printed nor stored. All printed text passes through `printable`, a path that a
user wrote through `path_of`, and a walk over a folder through `entries`.
"""

import codecs
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from ist_hpc.common.errors import InputError, printable

ENCODING_ERRORS = "ist_hpc.printable"
"""How an output treats characters that it cannot show: see `open`'s `errors`."""

__all__ = ["ENCODING_ERRORS", "entries", "is_text", "path_of", "printable"]


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return printable(error.object[error.start : error.end], ascii_only=True), error.end


codecs.register_error(ENCODING_ERRORS, _escaped)


def quoted(word: object) -> str:
    r"""A word as a shell reads it from a pasted line: `'a b'`, and `$'caf\xe9'`.

    A path that looks like an option, or like a home folder, begins with `./`.
    """
    text = str(word)
    if isinstance(word, PurePath) and text.startswith(("-", "~")):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _as_bytes(c) for c in escaped) + "'"


def _as_bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def command_line(words: Iterable[object]) -> str:
    """The words of a command as one line for a shell."""
    return " ".join(map(quoted, words))


def is_text(name: str) -> bool:
    """Whether a name can be stored in a file: it is UTF-8, and printable."""
    return name == printable(name)


def path_of(text: str) -> Path:
    """The path that a user wrote; see `expanded`. Raises `InputError`."""
    return Path(expanded(text))


def expanded(text: str) -> str:
    """A path with `~` and `~name` at its beginning expanded as a shell does.

    A shell expands them only at the beginning of a word, so it leaves `--output=~/x` as it is.
    Raises `InputError` for a home that cannot be found, and for a path without any name.
    """
    if not text or "\0" in text:
        raise InputError(f"a path must have a name, got {text!r}")
    if not text.startswith("~"):
        return text
    full = os.path.expanduser(text)
    if full.startswith("~"):
        home = text.partition("/")[0]
        raise InputError(
            f"{text}: the home folder {home} cannot be found; write the path in full, or ./{text} "
            "for a name that begins with ~"
        )
    return full


def entries(
    folder: Path,
    left_out: Callable[[Path, str], None],
    wanted: Callable[[Path], bool] = lambda path: True,
) -> list[Path]:
    """The contents of a folder of a data set, sorted by the bytes of the names.

    left_out  called with a folder that cannot be read, and why; it then counts as empty
    wanted    which entries count; entries that the system does not let us inspect are left out, too
    """
    try:
        found = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    except OSError as error:
        left_out(folder, f"the folder cannot be read ({error.strerror})")
        return []
    chosen = []
    for path in found:
        try:
            if wanted(path):
                chosen.append(path)
        except OSError as error:
            left_out(path, f"cannot be read ({error.strerror})")
    return chosen


def in_words(names: Iterable[str], most: int = 5) -> str:
    """Some names for a message: the first few, and how many more there are."""
    listed = [printable(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def spoken(metric: str) -> str:
    """The key of a metric as people say it: `precision_at_1` is `precision at 1`."""
    return metric.replace("_", " ")
