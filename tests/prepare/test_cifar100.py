"""`prepare cifar100`: what becomes of the images, and of pickles that are wrong or hostile."""

import io
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_hpc.common.errors import InputError
from ist_hpc.common.random_streams import permutation
from ist_hpc.data.shards import Dataset
from ist_hpc.prepare.__main__ import main
from ist_hpc.prepare.safe_pickle import load_dict

ROOT = Path(__file__).resolve().parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "cifar-100-python"
NAMES = ["apple", "bee", "castle"]
MANY = 1 << 20  # bytes: no file of these tests is larger


class _Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: its str is neither bytes nor text."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file):
        super().__init__(file, protocol=2)

    def _save_string(self, value):
        content = value.encode("latin-1") if isinstance(value, str) else value
        short = len(content) < 256
        self.write(
            b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))
        )
        self.write(content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = _save_string


def python2(value):
    file = io.BytesIO()
    _Python2Pickler(file).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def python3(protocol):
    return lambda value: pickle.dumps(value, protocol=protocol)


FLAVOURS = {"python 2": python2, **{f"protocol {p}": python3(p) for p in range(6)}}


def rows_of(split, rows=40):
    random = np.random.default_rng(len(split))
    labels = random.integers(0, len(NAMES), size=rows)
    return {
        "filenames": [f"image_{row}.png" for row in range(rows)],
        "batch_label": "part 1 of 1",
        "fine_labels": labels.tolist(),
        "coarse_labels": (labels // 2).tolist(),
        "data": random.integers(0, 256, size=(rows, 3072), dtype=np.uint8),
    }


def write(folder, dumps=python2, **changed):
    """A small CIFAR-100; `changed` are keys of its train file."""
    folder.mkdir()
    names = {"fine_label_names": NAMES, "coarse_label_names": ["food", "place"]}
    (folder / "meta").write_bytes(dumps(names))
    for split, more in (("train", changed), ("test", {})):
        (folder / split).write_bytes(dumps(rows_of(split) | more))
    return folder


def prepare(source, output, *options):
    return main(["cifar100", "--input", str(source), "--output", str(output), *options])


def assert_refused(place, capsys, message, *options):
    """Exit code 2, one line that has the message, nothing beside the input."""
    assert prepare(place / "in", place / "out", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("prepare: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in place.iterdir()] == ["in"]


class TestConversion:
    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_rows_and_names(self, flavour, tmp_path):
        source = write(tmp_path / "in", FLAVOURS[flavour])
        assert prepare(source, tmp_path / "out", "--seed", "3", "--shards", "3") == 0
        with Dataset.open(tmp_path / "out") as data:
            assert data.classes == tuple(NAMES)
            assert (data.feature_shape, data.feature_dtype) == ((3, 32, 32), "uint8")
            assert [shard.rows for shard in data.shards["train"]] == [13, 13, 14]
            for split, order in (
                ("train", permutation("prepare cifar100 rows", 3, 0, 40)),
                ("test", np.arange(40)),
            ):
                images, labels = data.read(split, 0, 40)
                wanted = rows_of(split)
                assert np.array_equal(images.reshape(40, 3072), wanted["data"][order])
                assert labels.tolist() == np.array(wanted["fine_labels"])[order].tolist()

    def test_coarse_labels_and_what_is_printed(self, tmp_path, capsys):
        write(tmp_path / "in")
        assert prepare(tmp_path / "in", tmp_path / "out", "--coarse") == 0
        printed = capsys.readouterr().out
        with Dataset.open(tmp_path / "out") as data:
            assert data.classes == ("food", "place")
            labels = data.read("test", 0, 40)[1]
            assert labels.tolist() == rows_of("test")["coarse_labels"]
            channels = data.made_by["train_channels"]
        images = rows_of("train")["data"].reshape(40, 3, 1024) / 255
        for name, exact in (("mean", images.mean((0, 2))), ("std", images.std((0, 2)))):
            assert channels[name] == exact.round(4).tolist()
            assert f"  {name}: {channels[name]}\n" in printed
        assert "40 train and 40 test images of 3 x 32 x 32, 2 coarse classes" in printed

    def test_arrays_by_columns(self, tmp_path):
        """As numpy pickles a transposed array; the protocols have two ways."""
        images = np.asfortranarray(rows_of("train")["data"])
        for protocol in (2, 5):
            file = tmp_path / str(protocol)
            file.write_bytes(pickle.dumps({"data": images}, protocol))
            assert np.array_equal(load_dict(file, MANY)["data"], images)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not CIFAR.is_dir():
        pytest.skip(f"no images of CIFAR-100: {CIFAR} is missing")
    output = tmp_path_factory.mktemp("cifar100") / "cifar100"
    assert prepare(CIFAR, output) == 0
    return output


def test_the_published_files(real):
    """Against the reading that the publisher's page gives."""
    names = pickle.loads((CIFAR / "meta").read_bytes(), encoding="latin1")["fine_label_names"]
    with Dataset.open(real) as data:
        assert list(data.classes) == names
        assert data.rows("test") == 10_000
        for split in ("train", "test"):
            published = pickle.loads((CIFAR / split).read_bytes(), encoding="latin1")
            rows = len(published["fine_labels"])
            order = np.arange(rows)
            if split == "train":
                order = permutation("prepare cifar100 rows", 0, 0, rows)
            images, labels = data.read(split, 0, rows)
            assert rows == data.rows(split)
            assert np.array_equal(images.reshape(rows, -1), published["data"][order])
            assert np.array_equal(labels, np.array(published["fine_labels"])[order])


class TestBadInput:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"data": np.zeros((40, 3071), np.uint8)},
                "in/train: `data` must be uint8 [images, 30",
            ),
            ({"data": np.zeros((40, 784), np.uint8)}, "(got uint8 [40, 784])"),
            ({"data": np.zeros((40, 3, 32, 32), np.uint8)}, "(got uint8 [40, 3, 32, 32])"),
            ({"data": [[0] * 3072] * 40}, "(got list)"),
            ({"data": np.zeros((0, 3072), np.uint8)}, "got 0 images and 40 `fine_labels`"),
            (
                {"data": np.zeros((40, 3072))},
                "in/train: `data` must be of uint8, 0 to 255 (got float64 [40, 3072])",
            ),
            (
                {"fine_labels": [3] * 40},
                "numbers from 0 to 2, as `meta` has 3 names (got 3 at row 0",
            ),
            ({"fine_labels": [0] * 39 + [-1]}, "(got -1 at row 39)"),
            ({"fine_labels": [0] * 39 + [True]}, "(got bool at row 39)"),
            ({"fine_labels": [0] * 39 + ["bee"]}, "(got bytes at row 39)"),
            ({"fine_labels": [0] * 39 + [1 << 20_000]}, "(got int at row 39)"),
            ({"fine_labels": [0] * 39}, "got 40 images and 39 `fine_labels`"),
            ({"fine_labels": 7}, "`fine_labels` must be a list of whole numbers (got int)"),
        ],
    )
    def test_content(self, changed, message, tmp_path, capsys):
        write(tmp_path / "in", **changed)
        assert_refused(tmp_path, capsys, message)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "train",
                None,
                "in: has no file train; give the folder cifar-100-python that https://",
            ),
            ("meta", None, "in: has no file meta"),
            ("test", b"", "in/test: is empty (0 bytes); copy or download it again"),
            (
                "test",
                b"label,pixel\n1,2\n",
                "in/test: is text (it begins with 'label,pixel 1,2'), must be a pickle file",
            ),
            (
                "test",
                b"\x1f\x8b\x08\x00gzip",
                "in/test: is packed with gzip; unpack it: gzip -dc <",
            ),
            ("test", python2([1, 2]), "in/test: must be the pickle of a dict (got list)"),
            (
                "test",
                python2({}),
                "in/test: has no `data`, but nothing; is it a file of CIFAR-100?",
            ),
            ("test", python3(2)({b"data": 1, "data": 2}), "keys must be different texts"),
            ("test", python2({(1,): 2}), "keys must be different texts"),
            ("meta", python2({"fine_label_names": ["a", "a"]}), "list of different names"),
            ("meta", python2({"fine_label_names": []}), "list of different names"),
            ("meta", python2({"names": []}), "in/meta: has no `fine_label_names`, but names; is"),
        ],
    )
    def test_files(self, name, content, message, tmp_path, capsys):
        file = write(tmp_path / "in") / name
        file.unlink() if content is None else file.write_bytes(content)
        assert_refused(tmp_path, capsys, message)

    @pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
    @pytest.mark.parametrize("flavour", ["python 2", "protocol 4"])
    def test_a_truncated_pickle(self, flavour, share, tmp_path, capsys):
        file = write(tmp_path / "in", FLAVOURS[flavour]) / "train"
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        assert_refused(tmp_path, capsys, "in/train: no pickle, or one that is cut short")

    def test_options_and_places(self, tmp_path, capsys):
        assert prepare(tmp_path / "none", tmp_path / "out") == 2
        assert "none: no such folder; give the folder cifar-100-" in capsys.readouterr().err
        write(tmp_path / "in")
        assert_refused(tmp_path, capsys, "--shards must be 1 to 10000", "--shards", "0")
        assert_refused(tmp_path, capsys, "--seed must be 0", "--seed", "-1")

    def test_a_file_too_large_is_not_read(self, tmp_path, capsys):
        with (write(tmp_path / "in") / "train").open("r+b") as file:
            file.truncate(600 << 20)  # a hole: it takes no room on disk
        assert_refused(tmp_path, capsys, "in/train: must have at most 536870912 bytes")


class Runs:
    """What runs a function when it is unpickled, unless that is refused."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Plain:
    """An object of a class."""


def loaded_ran(*_):
    raise AssertionError("the pickle was run")


# Programs that no pickler writes, in the words of `pickletools`.
_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
_UINT8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
HOSTILE = {
    "a call": (python3(2)({"data": Runs(loaded_ran)}), f"names {__name__}.loaded_ran"),
    "eval": (python3(4)([Runs(eval, "1")]), "names builtins.eval, which is no part"),
    "system": (b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", "names posix.system"),
    "system, text": (b"(S'true'\nios\nsystem\n.", "names os.system"),
    "an attribute": (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", "names numpy.ndarray.dump"),
    "numpy's load": (b"\x80\x02cnumpy\nload\n.", "names numpy.load"),
    "a class": (python3(4)(Plain()), f"names {__name__}.Plain"),
    "getattr": (b"\x80\x02c__builtin__\ngetattr\n.", "names __builtin__.getattr"),
    "lines": (b"\x80\x04\x8c\x03a\nb\x8c\x03\x1b[m\x93.", r"names a b.\x1b[m, which"),
    "objects": (python3(2)({"data": np.array([None])}), "has an array of O8, must be of numbers"),
    "records": (python3(4)({"a": np.zeros(2, "u1,u1")}), "has an array of V2, must be of numbers"),
    "an array of objects made": (
        b"\x80\x02cnumpy\nndarray\nK\x09\x85U\x01O\x86R.", "cut short or damaged"
    ),
    "new": (b"\x80\x02cnumpy\nndarray\n)\x81.", "cut short or damaged (NoneType.__new__"),
    "another id": (b"\x80\x02U\x01xQ.", "cut short or damaged (unsupported persistent id"),
    "an extension": (b"\x80\x02\x82\x01.", "cut short or damaged"),
    "a rich memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "must be the pickle of a dict"),
    "a long text": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x3fx.", "cut short or damaged"),
    "long bytes": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3fx.", "cut short or damaged"),
    "a long frame": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x3fN.", "must be the pickle of a dict"),
    "a number without end": (
        b"\x80\x02I" + b"1" * 5000 + b"\n.",
        "cut short or damaged",
    ),
}  # fmt: skip


class TestHostilePickles:
    @pytest.mark.parametrize("what", HOSTILE)
    def test_nothing_is_run(self, what, tmp_path, capsys):
        content, message = HOSTILE[what]
        (write(tmp_path / "in") / "test").write_bytes(content)
        assert_refused(tmp_path, capsys, message)

    def test_these_are_programs(self):
        """The reading that is refused here would do what it says."""
        for what in ("a call", "eval", "system"):
            if what == "a call":
                with pytest.raises(AssertionError, match="the pickle was run"):
                    pickle.loads(HOSTILE[what][0])
            else:
                assert pickle.loads(HOSTILE[what][0]) in ([1], 0)

    def test_bytes_are_not_taken_for_objects(self, tmp_path):
        """As numpy would, told so by the state of a dtype."""
        state = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
        file = tmp_path / "flags"
        file.write_bytes(
            b"\x80\x02}U\x01d" + _ARRAY + b"(K\x01K\x08\x85" + _UINT8 + state + b"\x89U\x08"
            + b"x" * 8 + b"tbs."
        )  # fmt: skip
        loaded = load_dict(file, MANY)["d"]
        assert not loaded.dtype.hasobject
        assert loaded.tobytes() == b"x" * 8

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from(sorted(FLAVOURS)),
        st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=3),
        st.floats(0, 1),
    )
    def test_damage_is_an_input_error_or_not_seen(self, tmp_path_factory, flavour, bytes_, end):
        """Whatever bytes are changed, and wherever it ends."""
        images = np.arange(12, dtype=np.uint8).reshape(2, 6)
        content = bytearray(FLAVOURS[flavour]({"data": images, "fine_labels": [0, 1], "x": "y"}))
        for place, value in bytes_:
            content[int(place * len(content))] = value
        file = tmp_path_factory.getbasetemp() / "damaged"
        file.write_bytes(content[: round(len(content) * end)])
        message = ""
        try:
            load_dict(file, MANY)
        except InputError as error:
            message = str(error)
        assert message.startswith(f"{file}: ") or not message
        assert "\n" not in message
