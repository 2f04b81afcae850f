"""Folders that a converter looks through: pipes and links, wrong places, names beside clips."""

import contextlib
import gzip
import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from ist_hpc.data.shards import Dataset
from ist_hpc.prepare.speech.clips import find_clips
from ist_hpc.prepare.speech.report import Report
from ist_hpc.prepare.speech.split import NUM_FOLDS, fold_of
from tests.helpers.found_input import (
    PLACES,
    TEXT,
    answer,
    cifar,
    clips,
    error_of,
    prepare,
    tar_of,
    wav_bytes,
)


def special(path: Path, kind: str) -> None:
    """Something that is no file one may read, in its place."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may not be long
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(path.name)
        os.chdir(here)


SPECIAL = {
    "pipe": "is a pipe, must be a file; write what comes out of it to a file",
    "folder": "is a folder, must be a file",
    "link to nothing": "is a symbolic link to nowhere, which is not there",
    "link to itself": "cannot be read (Too many levels of symbolic links)",
    "device": "is a device, must be a file",
    "socket": "is a socket, must be a file",
}


class TestNoFiles:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("kind", SPECIAL)
    def test_in_the_place_of_a_file(self, kind, place, tmp_path, capsys, monkeypatch):
        written = Path.write_bytes

        def write_bytes(path: Path, content: bytes) -> int:
            if content == b"here":
                special(path, kind)
                return 0
            return written(path, content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        assert SPECIAL[kind] in answer(place, b"here", tmp_path, capsys)

    def test_a_folder_that_an_archive_made(self, tmp_path, capsys):
        (tmp_path / "train.txt").mkdir()
        (tmp_path / "train.txt" / "train.txt").write_text(TEXT)
        files = ["--train", str(tmp_path / "train.txt"), "--test", str(tmp_path / "train.txt")]
        said = error_of(["xmc", *files, "--output", str(tmp_path / "out")], capsys)
        assert f"give the file in it, {tmp_path / 'train.txt' / 'train.txt'}" in said

    def test_a_file_that_is_still_packed(self, tmp_path, capsys):
        (tmp_path / "train.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
        files = ["--train", str(tmp_path / "train.txt"), "--test", str(tmp_path / "train.txt")]
        said = error_of(["xmc", *files, "--output", str(tmp_path / "out")], capsys)
        assert f"but there is {tmp_path / 'train.txt.gz'}: unpack that first" in said


class TestFolders:
    @pytest.mark.parametrize("depth", [1, 2])
    def test_too_high(self, depth, tmp_path, capsys):
        inner = "/".join(["a", "b"][:depth])
        for converter, make in (("speech", clips), ("cifar100", cifar)):
            right = make(tmp_path / converter / inner)
            command = [converter, "--input", str(tmp_path / converter)]
            said = error_of([*command, "--output", str(tmp_path / "out")], capsys)
            assert f"; give {right}, which has them" in said

    def test_too_deep(self, tmp_path, capsys):
        for converter, make, inner in (("speech", clips, "yes"), ("cifar100", cifar, "x")):
            right = make(tmp_path / converter)
            (right / inner).mkdir(exist_ok=True)
            command = [converter, "--input", str(right / inner)]
            said = error_of([*command, "--output", str(tmp_path / "out")], capsys)
            assert f"; give {right}, which has them" in said

    def test_a_file_and_what_it_is(self, tmp_path, capsys):
        archive = tmp_path / "speech_commands_v0.02.tar.gz"
        archive.write_bytes(gzip.compress(tar_of("yes/a_nohash_0.wav", wav_bytes())))
        for converter in ("speech", "cifar100"):
            command = [converter, "--input", str(archive), "--output", str(tmp_path / "out")]
            said = error_of(command, capsys)
            assert "is a file, must be a folder; it is a tar archive packed with gzip" in said
            assert f"unpack it: tar -xf {archive}" in said

    def test_the_archive_in_the_folder(self, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "x.tar.gz").write_bytes(gzip.compress(tar_of("train", b"x")))
        for converter in ("speech", "cifar100"):
            command = [
                converter,
                "--input",
                str(tmp_path / "in"),
                "--output",
                str(tmp_path / "out"),
            ]
            said = error_of(command, capsys)
            assert "x.tar.gz in it is a tar archive packed with gzip; unpack it: tar -xf" in said

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("train.bin", "the binary version of CIFAR-100"),
            ("data_batch_1", "CIFAR-10"),
            ("data_batch_1.bin", "the binary version of CIFAR-10"),
            ("train.mat", "the Matlab version of CIFAR-100"),
        ],
    )
    def test_other_versions_of_cifar(self, name, what, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / name).write_bytes(b"\1\2\3")
        command = ["cifar100", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        said = error_of(command, capsys)
        assert f"has no file train, but {name}: it is {what}; give the folder" in said

    @pytest.mark.parametrize("converter", ["speech", "cifar100"])
    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("nothing", "no such folder; give the folder"),
            ("pipe", "is a pipe, must be a folder"),
            ("link to nothing", "is a symbolic link to nowhere, which is not there"),
            ("link to itself", "cannot be read (Too many levels of symbolic links)"),
        ],
    )
    def test_no_folder(self, converter, kind, words, tmp_path, capsys):
        if kind != "nothing":
            special(tmp_path / "in", kind)
        command = [converter, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        assert words in error_of(command, capsys)


class TestWhatLiesBesideTheClips:
    @pytest.fixture(scope="class")
    @classmethod
    def converted(cls, tmp_path_factory):
        """Two words among everything that may lie beside them: what was said, and the data set."""
        pytest.importorskip("librosa")
        place = tmp_path_factory.mktemp("beside")
        folder = clips(place / "in")
        wav = wav_bytes()
        for name in (
            *("__MACOSX/yes/._speaker0_nohash_0.wav", ".hidden/a_nohash_0.wav", ".DS_Store"),
            *("yes/._speaker0_nohash_0.wav", "yes/.DS_Store", "yes/Thumbs.db", "yes/desktop.ini"),
            *("yes/speaker0_nohash_0.wav~", "yes/b_nohash_0.wav.part", "README.md"),
            *("yes/c_nohash_0.wav.crdownload", "LICENSE", "testing_list.txt", "no/notes.txt"),
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0\5\x16\7")
        for name in (
            "speaker0_nohash_0 (1).wav",
            "Copy of speaker1_nohash_0.wav",
            "speaker2_nohash_0 - Copy.wav",
            "speaker3_nohash_0_1.wav",
        ):
            (folder / "yes" / name).write_bytes(wav)
        bare = os.fsencode(folder)
        os.mkdir(bare + b"/caf\xe9")
        os.mkdir(bare + b"/new\nline")
        for name in (b"/caf\xe9/d_nohash_0.wav", b"/new\nline/e_nohash_0.wav"):
            Path(os.fsdecode(bare + name)).write_bytes(wav)
        Path(os.fsdecode(bare + b"/no/ren\xe9_nohash_0.wav")).write_bytes(wav)
        Path(os.fsdecode(bare + b"/no/\xff.wav")).write_bytes(wav)
        (folder / "broken").mkdir()
        for number in range(3):
            (folder / "broken" / f"f{number}_nohash_0.wav").write_bytes(b"fLaC")
        for kind in ("pipe", "folder", "link to nothing", "link to itself", "socket"):
            special(folder / "no" / f"{kind.replace(' ', '-')}_nohash_0.wav", kind)
        (folder / "loop").symlink_to("loop")
        (folder / "no" / "secret_nohash_0.wav").write_bytes(wav)
        (folder / "no" / "secret_nohash_0.wav").chmod(0)
        for name in ("lost+found", "yes/lost+found"):
            (folder / name).mkdir(mode=0)
        output = os.fsencode(place) + b"/sp\xe9ech"
        try:
            done = prepare(
                "speech", "--input", folder, "--output", output, "--workers", "1",
                env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            )  # fmt: skip
        finally:
            for name in ("lost+found", "yes/lost+found"):
                (folder / name).chmod(0o700)
        return done, Path(os.fsdecode(output))

    def test_it_ends_well(self, converted):
        done, output = converted
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "of 2 words" in done.stdout
        assert "wrote " in done.stdout
        assert "sp\\xe9ech" in done.stdout
        assert output.is_dir()

    def test_the_data_set(self, converted):
        data = Dataset.open(converted[1])
        assert data.classes == ("no", "yes")
        # Ten speakers a word, and one whose name is not UTF-8.
        assert data.rows("train") + data.rows("test") == 21

    def test_all_that_was_left_out_is_named(self, converted):
        made_by = json.loads((converted[1] / "meta.json").read_text("utf-8"))["made_by"]
        assert "sp\\xe9ech" in made_by["command"]
        folders = made_by["left_out_folders"]
        assert folders == {
            "broken": "none of its 3 clips can be read",
            "caf\\xe9": "a word becomes the name of a class, and this one is no printable UTF-8; "
            "rename it",
            "lost+found": "the folder cannot be read (Permission denied)",
            "new\\x0aline": folders["caf\\xe9"],
        }
        flac = "is a FLAC file; convert it to a wav file of 16 bit, mono, 16 kHz"
        copy = "its name is not <speaker>_nohash_<n>.wav; most likely a copy"
        pipe = "is a pipe, must be a file; write what comes out of it to a file, and give that"
        assert made_by["unreadable"] == {
            **{f"broken/f{number}_nohash_0.wav": flac for number in range(3)},
            "no/folder_nohash_0.wav": "is a folder, must be a file",
            "no/link-to-itself_nohash_0.wav": "cannot be read (Too many levels of symbolic links)",
            "no/link-to-nothing_nohash_0.wav": "is a symbolic link to nowhere, which is not there",
            "no/pipe_nohash_0.wav": pipe,
            "no/secret_nohash_0.wav": "cannot be read (Permission denied)",
            "no/socket_nohash_0.wav": "is a socket, must be a file",
            "no/\\xff.wav": "its name is not <speaker>_nohash_<n>.wav",
            "yes/Copy of speaker1_nohash_0.wav": copy,
            "yes/speaker0_nohash_0 (1).wav": copy,
            "yes/speaker2_nohash_0 - Copy.wav": copy,
            "yes/speaker3_nohash_0_1.wav": "its name is not <speaker>_nohash_<n>.wav",
        }

    def test_two_ways_of_unicode(self, tmp_path, capsys):
        folder = clips(tmp_path / "in", ("caf\u00e9", "cafe\u0301"))
        command = ["speech", "--input", str(folder), "--output", str(tmp_path / "out")]
        said = error_of(command, capsys)
        assert "'cafe\\u0301' and 'caf\\xe9' are one name in two ways of Unicode" in said
        for way in ("ren\u00e9", "rene\u0301"):
            (folder / "cafe\u0301" / f"{way}_nohash_0.wav").write_bytes(wav_bytes())
        shutil.rmtree(folder / "caf\u00e9")
        _, found_clips = find_clips(Report(folder))
        assert len({clip.speaker for clip in found_clips if clip.speaker.startswith("ren")}) == 1

    def test_all_words_left_out(self, tmp_path, capsys):
        folder = tmp_path / "in"
        folder.mkdir()
        os.mkdir(os.fsencode(folder) + b"/\xff")
        path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff/a_nohash_0.wav"))
        path.write_bytes(wav_bytes())
        command = ["speech", "--input", str(folder), "--output", str(tmp_path / "out")]
        assert "no clip can be used; \\xff: a word becomes the name" in error_of(command, capsys)

    def test_an_input_that_may_not_be_read(self, tmp_path):
        (tmp_path / "in").mkdir(mode=0)
        (tmp_path / "file").write_text(TEXT)
        (tmp_path / "file").chmod(0)
        (tmp_path / "names").mkdir()
        for name in ("train", "test", "meta"):
            (tmp_path / "names" / name).touch()
        (tmp_path / "names").chmod(0o600)  # its names may be read, and no more
        output = ("--output", tmp_path / "out")
        try:
            for arguments, words in (
                (("speech", "--input", tmp_path / "in"), "in: cannot be read (Permission denied)"),
                (
                    ("speech", "--input", tmp_path / "in" / "x"),
                    "cannot be read (Permission denied)",
                ),
                (("cifar100", "--input", tmp_path / "in"), "in: cannot be read (Permission denied"),
                (("cifar100", "--input", tmp_path / "names"), "meta: cannot be read (Permission"),
                (
                    ("xmc", "--train", tmp_path / "file", "--test", tmp_path / "file"),
                    "file: cannot be read (Permission denied)",
                ),
                (
                    ("xmc", "--train", tmp_path / "in" / "x", "--test", tmp_path / "file"),
                    "x: cannot be read (Permission denied)",
                ),
            ):
                done = prepare(*arguments, *output)
                assert done.returncode == 2, done.stderr
                assert done.stderr.count("\n") == 1
                assert words in done.stderr
        finally:
            for name in ("in", "names"):
                (tmp_path / name).chmod(0o700)


class TestNames:
    def test_a_data_set_of_text_whose_names_are_no_utf_8(self, tmp_path):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        folder.mkdir()
        train = folder / os.fsdecode(b"tr\xffin.txt")
        train.write_text(TEXT.replace("2 2:0.25", "x"))
        files = ("--train", os.fsencode(train), "--test", os.fsencode(train))
        output = os.fsencode(folder) + b"/d\xe9licious"
        done = prepare("xmc", *files, "--output", output, env=os.environ | {"LC_ALL": "C"})
        assert done.returncode == 2
        assert "caf\\xe9/tr\\xffin.txt, line 4: a label must be a whole number" in done.stderr
        done = prepare("xmc", *files, "--skip-malformed", "--output", output)
        assert done.returncode == 0, done.stderr
        meta = json.loads(Path(os.fsdecode(output + b"/meta.json")).read_text("utf-8"))
        assert meta["name"] == "d\\xe9licious"
        assert [*meta["made_by"]["file_bytes"]] == [f"{tmp_path}/caf\\xe9/tr\\xffin.txt"]

    @pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", os.fsdecode(b"caf\xe9")])
    def test_the_name_of_a_data_set(self, name, tmp_path, capsys):
        (tmp_path / "a").write_text(TEXT)
        files = ["--train", str(tmp_path / "a"), "--test", str(tmp_path / "a"), "--name", name]
        said = error_of(["xmc", *files, "--output", str(tmp_path / "out")], capsys)
        assert "--name must be printable UTF-8, at least one character (got " in said

    def test_the_fold_of_a_speaker_is_of_the_bytes_of_the_name(self):
        assert fold_of("é") == 3
        assert fold_of(os.fsdecode(b"\xe9")) in range(NUM_FOLDS)
