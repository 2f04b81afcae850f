"""Numbers as people write them, in ASCII: in an option, a variable or a field of a table.

Python itself accepts more: `1_0` is 10, `０１` of another script 1, and `²` a digit.
"""

import re

_WHOLE = re.compile(r"[-+]?[0-9]+", re.ASCII)
_NUMBER = re.compile(
    r"[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?|inf|infinity|nan)",
    re.ASCII | re.IGNORECASE,
)


def whole(text: str) -> int:
    """The whole number, with blanks around it or none. Raises ValueError."""
    return int(_only(_WHOLE, text))


def number(text: str) -> float:
    """The number, which may be infinite or nan. Raises ValueError."""
    return float(_only(_NUMBER, text))


def whole_from(least: int, text: str) -> int:
    """The whole number, at least `least`. Raises ValueError that names this minimum."""
    try:
        found = whole(text)
    except ValueError:
        found = least - 1
    if found < least:
        raise ValueError(f"must be a whole number from {least} on, got {text!r}")
    return found


def _only(form: re.Pattern[str], text: str) -> str:
    found = form.fullmatch(text.strip(" "))
    if found is None:
        raise ValueError(f"no number: {text!r}")
    return found[0]
