"""The place of a data set: what is in the way, what is replaced, and what others left there."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ist_hpc.common.disk import files
from ist_hpc.common.errors import InputError
from ist_hpc.data.shards import Dataset
from ist_hpc.data.writing.target import AlreadyMadeError
from tests.helpers.data_sets import write


class TestReplacing:
    def test_existing_output(self, made):
        before = (made.path / "meta.json").read_bytes()
        with pytest.raises(InputError, match="mine exists"):
            made.write(train=3)
        assert (made.path / "meta.json").read_bytes() == before
        made.write(train=3, overwrite=True)
        assert Dataset.open(made.path).rows("train") == 3
        assert [p.name for p in made.path.parent.iterdir()] == ["mine"]

    def test_an_old_set_is_replaced_whole(self, made):
        made.write(train=0, test=3, overwrite=True)
        assert sorted(file.name for file in made.path.iterdir()) == ["meta.json", "test-0000.h5"]
        assert [path.name for path in made.path.parent.iterdir()] == ["mine"]

    def test_a_failed_overwrite_keeps_the_old(self, dense):
        with pytest.raises(InputError, match="labels must be"):
            write(dense, classes=["one"], overwrite=True)
        Dataset.open(dense).check_shard("train", 3)
        assert [p.name for p in dense.parent.iterdir()] == ["mine"]

    def test_only_a_data_set_is_overwritten(self, tmp_path, dense):
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "train-0000.h5").touch()
        (dense / "thesis.tex").touch()
        (tmp_path / "file").touch()
        for name, message in (
            ("half", r"is not a data set \(it has no meta\.json\)"),
            ("mine", r"is not a data set \(it holds thesis\.tex\)"),
            ("file", "is not a folder"),
        ):
            for overwrite in (True, False):  # which does not say that the other would do
                with pytest.raises(InputError, match=message) as refused:
                    write(tmp_path / name, overwrite=overwrite)
                assert "--overwrite" not in str(refused.value)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_an_empty_folder_is_no_data_set_that_is_in_the_way(self, tmp_path, overwrite):
        (tmp_path / "d").mkdir()
        write(tmp_path / "d", train=3, overwrite=overwrite)
        assert Dataset.open(tmp_path / "d").rows("train") == 3
        assert [p.name for p in tmp_path.iterdir()] == ["d"]

    def test_a_folder_whose_place_none_can_take(self, tmp_path, monkeypatch):
        (tmp_path / "d").mkdir()
        monkeypatch.chdir(tmp_path / "d")
        with pytest.raises(InputError, match="exists; give another folder: this was started in it"):
            write(Path())
        with pytest.raises(InputError, match="/ exists; give another folder: it is not a data set"):
            write(Path("/"), overwrite=True)
        assert list(tmp_path.iterdir()) == [tmp_path / "d"]


class TestLeftovers:
    def test_what_a_killed_one_left_is_named(self, tmp_path, caplog):
        (tmp_path / ".d.partial-1").mkdir()
        with caplog.at_level(logging.WARNING, "ist_hpc"):
            write(tmp_path / "d")
        (record,) = caplog.records
        assert f"{tmp_path}/.d.partial-1 was left by a preparation" in record.getMessage()

    def test_what_a_killed_one_of_this_machine_left_is_removed(self, tmp_path, caplog):
        """And nothing that may be of one that runs, or of another machine."""
        left = {
            kind: hidden_name_of_the_dead(tmp_path / "d", kind)
            for kind in ("partial", "shuffle", "old")
        }
        for folder in left.values():
            folder.mkdir()
            (folder / "train-0000.h5").touch()
        of_living = files.hidden_beside(tmp_path / "d")
        of_living.mkdir()
        elsewhere = Path(f"{str(left['partial'])[:-16]}{'0' * 16}")
        elsewhere.mkdir()
        of_another_set = hidden_name_of_the_dead(tmp_path / "d2", "partial")
        of_another_set.mkdir()
        write(tmp_path / "d", overwrite=True)
        assert sorted(tmp_path.iterdir()) == sorted(
            [of_another_set, of_living, elsewhere, tmp_path / "d"]
        )
        assert caplog.text.count("removing") == 3
        assert caplog.text.count("remove it if none does") == 2

    def test_a_data_set_whose_replacement_was_interrupted_is_there_again(self, dense, caplog):
        old = hidden_name_of_the_dead(dense, "old")
        dense.rename(old)
        with pytest.raises(AlreadyMadeError, match="mine is there"):
            write(dense, if_missing=True)
        Dataset.open(dense).check_shard("train", 3)
        assert [p.name for p in dense.parent.iterdir()] == ["mine"]
        assert "is there again: its replacement was interrupted" in caplog.text


def hidden_name_of_the_dead(path, kind):
    """The name that a process had beside `path`, which is no more."""
    program = (
        "import sys, pathlib, ist_hpc.common.disk.files as files; "
        "print(files.hidden_beside(pathlib.Path(sys.argv[1]), sys.argv[2]))"
    )
    words = [sys.executable, "-c", program, str(path), kind]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return Path(done.stdout.strip())
