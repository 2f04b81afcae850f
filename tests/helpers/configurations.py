"""A small configuration, and what is said of one that has a mistake."""

from pathlib import Path

import pytest

from ist_hpc.common.errors import InputError
from ist_hpc.config import loading

ROOT = Path(__file__).resolve().parents[2]
BASE = "data: {path: d}\nmodel: {hidden: [4]}\ntrain: {epochs: 1}\n"  # lines 1 to 3


def mistake(text: str, *given: str) -> str:
    with pytest.raises(InputError) as caught:
        loading.parse(text, "my.yaml", given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def lines(*parts: str) -> str:
    return BASE + "\n".join(parts) + "\n"
