"""The converters: what becomes of the inputs, and that nothing depends on how many worked at it."""

import argparse
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ist_hpc.common.errors import InputError
from ist_hpc.data.shards import Dataset
from ist_hpc.prepare import DATASETS, common
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.digits import prepare_digits
from ist_hpc.prepare.speech.audio import ClipError, log_mel, read_clip
from ist_hpc.prepare.speech.clips import find_clips
from ist_hpc.prepare.speech.report import Clip, Report
from ist_hpc.prepare.speech.split import NUM_FOLDS, fold_of, split_rows

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT.parent / "shared" / "data" / "speech_commands"
RATE = 16000


def write_clip(path, samples, channels=1, width=2, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, dtype="<i2").tobytes())


def noise(seed, samples=RATE):
    return np.random.default_rng(seed).integers(-9000, 9000, size=samples)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two words, ten speakers and one of every kind of unusual clip."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(10):
        for seed, word in ((10, "yes"), (20, "no")):
            write_clip(folder / word / f"speaker{number}_nohash_0.wav", noise(seed + number))
    write_clip(folder / "yes" / "short_nohash_0.wav", noise(1, RATE - 5))
    write_clip(folder / "yes" / "long_nohash_0.wav", noise(2, RATE + 5))
    write_clip(folder / "yes" / "silent_nohash_0.wav", np.zeros(RATE))
    write_clip(folder / "no" / "stereo_nohash_0.wav", noise(3), channels=2)
    write_clip(folder / "no" / "fast_nohash_0.wav", noise(3), rate=44100)
    write_clip(folder / "no" / "empty_nohash_0.wav", [])
    write_clip(folder / "no" / "anonymous.wav", noise(3))
    (folder / "no" / "text_nohash_0.wav").write_text("no sound at all")
    (folder / "no" / "void_nohash_0.wav").touch()
    (folder / "no" / "notes.txt").touch()
    write_clip(folder / "_background_noise_" / "rain_nohash_0.wav", noise(4))
    (folder / "nothing").mkdir()
    whole = folder / "no" / "speaker0_nohash_0.wav"
    for name, size in (("cut_nohash_0.wav", 20000), ("header_nohash_0.wav", 30)):
        (folder / "no" / name).write_bytes(whole.read_bytes()[:size])
    return folder


UNREADABLE = {
    "no/anonymous.wav": "its name is not <speaker>_nohash_<n>.wav",
    "no/cut_nohash_0.wav": "truncated: its header says 16000 samples, it has 9978",
    "no/empty_nohash_0.wav": "has no samples",
    "no/fast_nohash_0.wav": "must be mono, 16 bit, 16000 Hz (got 1 channels, 16 bit, 44100 Hz)",
    "no/header_nohash_0.wav": (
        "not a readable PCM wav file (it ends too early, or its format is damaged)"
    ),
    "no/stereo_nohash_0.wav": "must be mono, 16 bit, 16000 Hz (got 2 channels, 16 bit, 16000 Hz)",
    "no/text_nohash_0.wav": "is text (it begins with 'no sound at all'), must be a wav file",
    "no/void_nohash_0.wav": "is empty (0 bytes); copy or download it again",
}


def prepare_speech(folder, output, *options):
    command = ["speech", "--input", str(folder), "--output", str(output), *options]
    return main(command)


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """The clips above as a data set, made by two workers."""
    pytest.importorskip("librosa")
    output = tmp_path_factory.mktemp("made") / "speech"
    assert prepare_speech(clips, output, "--workers", "2", "--shards", "4") == 0
    return output


class TestCommandLine:
    def test_help_is_quick_and_teaches(self):
        imports = (
            "import sys; from ist_hpc.prepare.__main__ import main\n"
            "try: main(['speech', '--help'])\n"
            "finally: assert not {'librosa', 'sklearn', 'scipy', 'numba'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "python -m ist_hpc.prepare speech --input" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "the following arguments are required: NAME; see python -m ist_hpc.prepare"),
            (["speach"], "invalid choice: 'speach' (choose from 'cifar100', 'digits'"),
            (["digits"], "required: --output; see python -m ist_hpc.prepare digits --help"),
            (["digits", "--output", "x", "--seed", "-1"], "--seed must be 0 to"),
            (["speech", "--output", "x"], "required: --input"),
            (["speech", "--input", "i", "--output", "x"], "--input i: no such folder; give the"),
            (["speech", "--input", ".", "--output", "x"], "must hold clips <word>/<speaker>_noh"),
            (["speech", "--input", ".", "--output", "."], ". exists; give another folder"),
            (["speech", "--input", ".", "--output", "x", "--fold", "5"], "--fold must be 0 to 4"),
            (
                ["speech", "--input", ".", "--output", "x", "--workers", "0"],
                "--workers must be 1 to 1024",
            ),
            (
                ["speech", "--input", ".", "--output", "x", "--shards", "0"],
                "--shards must be 1 to 10000",
            ),
        ],
    )
    def test_mistakes_are_one_line_and_leave_nothing(
        self, arguments, message, tmp_path, monkeypatch, capsys
    ):
        pytest.importorskip("librosa")
        monkeypatch.chdir(tmp_path)
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("prepare: error: ")
        assert message in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_missing_librosa(self, clips, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "librosa", None)
        assert prepare_speech(clips, tmp_path / "x") == 2
        assert "install it with: pip install 'ist_hpc[speech]'" in capsys.readouterr().err

    def test_every_data_set_has_what_the_command_line_needs(self):
        for module_name in DATASETS.values():
            module = __import__(module_name, fromlist=["run"])
            module.add_arguments(argparse.ArgumentParser())
            assert module.HELP
            assert "python -m ist_hpc.prepare" in module.EXAMPLES
            assert callable(module.run)

    def test_a_cancelled_job_leaves_nothing(self, clips, tmp_path):
        pytest.importorskip("librosa")
        command = [sys.executable, "-m", "ist_hpc.prepare", "speech", "--input", str(clips)]
        process = subprocess.Popen([*command, "--output", str(tmp_path / "x")], cwd=ROOT)
        give_up = time.monotonic() + 120
        while not list(tmp_path.iterdir()) and time.monotonic() < give_up:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert list(tmp_path.iterdir()) == []


class TestDigits:
    @pytest.fixture
    def digits(self, tmp_path):
        pytest.importorskip("sklearn")
        prepare_digits(tmp_path / "digits")
        with Dataset.open(tmp_path / "digits") as data:
            yield data

    def test_rows(self, digits):
        assert (digits.rows("train"), digits.rows("test")) == (1438, 359)
        assert [s.rows for s in digits.shards["train"]] == [359, 360, 359, 360]
        assert len(digits.shards["test"]) == 1
        assert digits.feature_shape == (64,)
        for split, shards in digits.shards.items():
            for index in range(len(shards)):
                digits.check_shard(split, index)

    def test_every_image_is_there_once(self, digits):
        from sklearn.datasets import load_digits

        source = load_digits()
        wanted = np.column_stack([source.data / 16, source.target])
        parts = [digits.read(split, 0, digits.rows(split)) for split in ("train", "test")]
        got = np.concatenate([np.column_stack(part) for part in parts])
        np.testing.assert_array_equal(sorted(got.tolist()), sorted(wanted.tolist()))

    def test_the_test_set_is_stratified_and_the_order_random(self, digits):
        labels = digits.read("test", 0, digits.rows("test"))[1]
        counts = np.bincount(labels, minlength=10)
        assert counts.min() >= 34
        assert counts.max() <= 37
        for index in range(4):  # every shard has every digit
            shard = digits.read("train", *digits.shard_range("train", index))[1]
            assert len(set(shard.tolist())) == 10

    def test_command_and_seed(self, digits, tmp_path, capsys):
        output = tmp_path / "other"
        assert main(["digits", "--output", str(output), "--seed", "1"]) == 0
        assert "1438 train and 359 test rows" in capsys.readouterr().out
        other = Dataset.open(output)
        assert other.made_by["command"].endswith(f"digits --output {output} --seed 1")
        assert other.shards["train"] != digits.shards["train"]
        prepare_digits(tmp_path / "again")
        assert Dataset.open(tmp_path / "again").shards == digits.shards


class TestSpeech:
    def test_counts(self, made):
        data = Dataset.open(made)
        made_by = data.made_by
        assert data.classes == ("no", "yes")
        assert made_by["unreadable"] == UNREADABLE
        assert (made_by["padded"], made_by["cut"]) == (1, 1)
        assert made_by["clips"] == 23 + len(UNREADABLE)
        assert data.rows("train") + data.rows("test") == 23
        assert sum(made_by["speakers"].values()) == 13
        assert len(data.shards["train"]) == 4
        for split, shards in data.shards.items():
            for index in range(len(shards)):
                data.check_shard(split, index)

    def test_rows_are_the_clips_in_their_order(self, clips, made):
        report = Report(clips)
        _, found = find_clips(report)
        readable = {split: [] for split in ("train", "test")}
        for split, rows in split_rows(found, fold=0, seed=0).items():
            for row in rows:
                if str(found[row].path.relative_to(clips)) not in UNREADABLE:
                    readable[split].append(found[row])
        with Dataset.open(made) as data:
            for split, wanted in readable.items():
                features, labels = data.read(split, 0, data.rows(split))
                assert labels.tolist() == [clip.label for clip in wanted]
                for row, clip in zip(features, wanted, strict=True):
                    expected = log_mel(read_clip(clip.path)[0]).reshape(-1)
                    np.testing.assert_allclose(row, expected, atol=1e-4)

    def test_no_dependence_on_workers(self, clips, made, tmp_path, capsys):
        code = prepare_speech(clips, tmp_path / "one", "--workers", "1", "--shards", "4")
        assert code == 0
        assert Dataset.open(tmp_path / "one").shards == Dataset.open(made).shards
        out, err = capsys.readouterr()
        assert "31 clips of 2 words; 1 padded, 1 cut, 8 unreadable" in out
        assert "left out no/anonymous.wav: its name" in err
        assert "left out 3 more, named in meta.json" in err
        assert "\r" not in err  # no progress bar in a log

    def test_no_clip_can_be_read(self, tmp_path, capsys):
        pytest.importorskip("librosa")
        for number in range(20):
            path = tmp_path / "clips" / "yes" / f"speaker{number}_nohash_0.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert prepare_speech(tmp_path / "clips", tmp_path / "x", "--workers", "1") == 2
        error = capsys.readouterr().err
        assert "none of the 20 clips can be read, for example yes/speaker0_" in error
        assert [p.name for p in tmp_path.iterdir()] == ["clips"]

    def test_too_few_speakers(self, tmp_path, capsys):
        pytest.importorskip("librosa")
        write_clip(tmp_path / "clips" / "yes" / "anna_nohash_0.wav", noise(0))
        fold = str((fold_of("anna") + 1) % NUM_FOLDS)
        assert prepare_speech(tmp_path / "clips", tmp_path / "x", "--fold", fold) == 2
        assert f"fold {fold} of 1 speakers leaves no test clips" in capsys.readouterr().err

    def test_folds_cover_every_clip_once_and_share_no_speaker(self):
        found = [
            Clip(Path(f"w/{speaker}_nohash_{n}.wav"), 0, f"{speaker:x}")
            for speaker in range(1000)
            for n in range(3)
        ]
        tested = []
        for fold in range(NUM_FOLDS):
            rows = split_rows(found, fold, seed=0)
            speakers = {split: {found[r].speaker for r in part} for split, part in rows.items()}
            assert not speakers["train"] & speakers["test"]
            assert 150 < len(speakers["test"]) < 250
            assert sorted(rows["train"] + rows["test"]) == list(range(len(found)))
            tested += rows["test"]
        assert sorted(tested) == list(range(len(found)))

    @pytest.mark.parametrize(("speaker", "fold"), [("0a7c2a8d", 1), ("nobody", 1), ("é", 3)])
    def test_fold_is_fixed(self, speaker, fold):
        assert fold_of(speaker) == fold


class TestFeatures:
    def test_against_plain_numpy(self):
        pytest.importorskip("librosa")
        clip = (noise(5) / 32768).astype(np.float32)
        clip[5000:] *= 0.001  # so that the floor at -80 dB is met
        expected = plain_log_mel(clip.astype(np.float64))
        assert expected.min() == pytest.approx(-80)
        np.testing.assert_allclose(log_mel(clip), expected, atol=2e-3)

    def test_the_bits_of_librosa(self):
        librosa = pytest.importorskip("librosa")
        if not RECORDINGS.is_dir():
            pytest.skip(f"no recordings: {RECORDINGS} is missing")
        clip, samples = read_clip(sorted((RECORDINGS / "yes").glob("*.wav"))[0])
        mel = librosa.feature.melspectrogram(y=clip, sr=RATE)
        expected = librosa.power_to_db(mel, ref=np.max)
        assert samples == RATE
        assert expected.shape == (128, 32)
        np.testing.assert_allclose(log_mel(clip), expected, atol=1e-4)

    def test_silence_is_zeros(self):
        pytest.importorskip("librosa")
        assert not log_mel(np.zeros(RATE, dtype=np.float32)).any()

    def test_short_clip_is_padded_and_long_one_cut(self, tmp_path):
        samples = noise(0, RATE + 9)
        for length in (RATE - 9, RATE, RATE + 9):
            write_clip(tmp_path / "a.wav", samples[:length])
            clip, found = read_clip(tmp_path / "a.wav")
            assert found == length
            kept = min(length, RATE)
            np.testing.assert_array_equal(clip[:kept], (samples[:kept] / 32768).astype(np.float32))
            assert not clip[kept:].any()

    def test_header_that_claims_gigabytes(self, tmp_path):
        write_clip(tmp_path / "a.wav", noise(0, 100))
        data = bytearray((tmp_path / "a.wav").read_bytes())
        data[4:8] = data[40:44] = b"\xf0\xff\xff\xff"
        (tmp_path / "a.wav").write_bytes(data)
        with pytest.raises(ClipError, match="truncated: its header says"):
            read_clip(tmp_path / "a.wav")


def plain_log_mel(clip):
    """Log-mel features from their definition: Hann window, Slaney's mels, area-normalised."""
    padded = np.pad(clip, 1024)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = np.stack([padded[s : s + 2048] * window for s in range(0, RATE + 1, 512)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    # Slaney's scale: linear up to 1 kHz (15 mels), then 27 mels for each factor of 6.4.
    mels = np.linspace(0, 15 + 27 * np.log(8000 / 1000) / np.log(6.4), 130)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    hertz = np.linspace(0, RATE / 2, 1025)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    filters = np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)
    decibel = 10 * np.log10(np.maximum(1e-10, filters @ power.T))
    decibel -= decibel.max()
    return np.maximum(decibel, -80)


def test_real_recordings(tmp_path):
    pytest.importorskip("librosa")
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recordings: {RECORDINGS} is missing")
    words = ("bed", "cat", "wow")
    for word in words:
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / word).symlink_to(RECORDINGS / word)
    assert prepare_speech(tmp_path / "clips", tmp_path / "speech", "--workers", "2") == 0
    with Dataset.open(tmp_path / "speech") as data:
        assert data.classes == words
        assert data.made_by["unreadable"] == {}
        assert data.rows("train") > data.rows("test") > 0
        features, _ = data.read("train", 0, data.rows("train"))
        assert features.min() >= -80.001
        np.testing.assert_allclose(features.max(axis=1), 0, atol=1e-5)


class TestCommon:
    @given(st.integers(1, 500), st.integers(1, 40))
    def test_shards_differ_by_a_row(self, rows, shards):
        sizes = np.diff([0, *common.shard_ends(rows, shards)])
        assert sizes.sum() == rows
        assert len(sizes) == min(rows, shards)
        assert sizes.max() - sizes.min() <= 1

    def test_ordered_map_is_in_order_and_puts_the_environment_back(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
        assert list(common.ordered_map(abs, range(-50, 0), 2)) == list(range(50, 0, -1))
        assert os.environ["OMP_NUM_THREADS"] == "7"
        assert "MKL_NUM_THREADS" not in os.environ
        assert list(common.ordered_map(os.getenv, ["OMP_NUM_THREADS"], 1)) == ["1"]

    def test_a_worker_that_dies_is_an_answer(self):
        with pytest.raises(InputError, match=r"a worker process died.*fewer than 1 --workers"):
            list(common.ordered_map(os._exit, [9], 1))
