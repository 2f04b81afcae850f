"""Names of files are bytes, and a path may begin with `~`."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ist_hpc.common.disk import names
from ist_hpc.common.errors import InputError

ANY_NAME = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name)


@given(ANY_NAME)
def test_any_name_becomes_a_line_that_every_file_and_terminal_takes(name):
    shown = names.printable(os.fsdecode(name))
    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert os.fsdecode(name).encode("ascii", names.ENCODING_ERRORS).isascii()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xe9", r"caf\xe9"),
        ("café".encode(), "café"),
        (b"a\x1b[1m", r"a\x1b[1m"),
        (b"a\nb", r"a\x0ab"),
        ("a\u2028b".encode(), r"a\u2028b"),
        (b"plain name", "plain name"),
    ],
)
def test_what_is_shown(name, shown):
    assert names.printable(os.fsdecode(name)) == shown


@given(st.lists(ANY_NAME, min_size=1, max_size=3))
def test_a_quoted_line_gives_back_its_words(words):
    line = names.command_line(map(os.fsdecode, words))
    assert line.isprintable()
    done = subprocess.run(
        ["bash", "-c", r"printf '%s\0' " + line], capture_output=True, timeout=60, check=True
    )
    assert done.stdout == b"".join(word + b"\0" for word in words)


@pytest.mark.parametrize("home", ["/home/me", None])
def test_the_home_folder(home, monkeypatch):
    if home:
        monkeypatch.setenv("HOME", home)
    else:  # of the user's entry in the system's list
        monkeypatch.delenv("HOME", raising=False)
        home = os.path.expanduser("~")
    assert names.path_of("~") == Path(home)
    assert names.path_of("~/a b/~c") == Path(home, "a b", "~c")
    assert names.path_of("~root/x") == Path(os.path.expanduser("~root"), "x")
    for text in ("./~", "a~b", "x/~/y", "a b", "-"):
        assert names.path_of(text) == Path(text)


@pytest.mark.parametrize("text", ["~nobody-of-this-name", "~nobody-of-this-name/x", "", "a\0b"])
def test_a_path_that_cannot_be_is_refused(text):
    with pytest.raises(InputError):
        names.path_of(text)
