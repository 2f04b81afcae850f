"""Files that take the place of others: whole, or not at all."""

import pytest

from ist_hpc.files import replacing, write_text


def test_what_was_written_takes_the_place(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with replacing(path) as beside:
        beside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["picture.png"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as beside:
            beside.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["picture.png"]


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "a", "größer\n")
    assert (tmp_path / "a").read_bytes() == "größer\n".encode()
