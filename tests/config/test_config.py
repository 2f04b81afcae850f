"""Every mistake in a configuration is one line that says what, where and what is allowed."""

import dataclasses
import math
import os
from types import NoneType
from typing import Annotated, get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ist_hpc.config import loading
from ist_hpc.config.filling import FilePath, choices_of
from ist_hpc.config.keys import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ExchangeConfig,
    MlpConfig,
    OptimizerConfig,
    ResnetConfig,
    RuntimeConfig,
    TrainConfig,
    Vgg11Config,
)
from tests.helpers.configurations import BASE, ROOT, lines, mistake

# What is wrong in a file: (what line 4 on says, what the message says).

WRONG = {
    "unknown section": ("optimiser: {lr: 1}", ["`optimiser`", "did you mean `optimizer`?"]),
    "unknown key": (
        "optimizer: {learning_rate: 1}",
        ["`optimizer.learning_rate`", "valid: kind, lr, momentum"],
    ),
    "near key": (
        "evaluate: {batch_row: 1}",
        ["`evaluate.batch_row`", "did you mean `evaluate.batch_rows`?"],
    ),
    "a number as a key": ("7: 1", ["unknown key `7`", "valid: data, model"]),
    "text for a number": ("seed: many", ["`seed`", "a whole number", "got 'many' (a text)"]),
    "fraction for a whole number": (
        "exchange: {buffer_mib: 1.5}",
        ["`exchange.buffer_mib`", "a whole number", "got 1.5 (a number)"],
    ),
    "a word for a number": ("seed: yes", ["`seed`", "a whole number", "got 'yes' (a text)"]),
    "true for a fraction": ("optimizer: {lr: true}", ["`optimizer.lr`", "a number", "got True"]),
    "number for a text": ("name: 3", ["`name`", "a text", "got 3 (a whole number)"]),
    "octal of YAML 1.2": ("seed: 0o10", ["`seed`", "a whole number", "got '0o10' (a text)"]),
    "hexadecimal": ("seed: 0x10", ["`seed`", "a whole number", "got '0x10' (a text)"]),
    "binary": ("seed: 0b11", ["`seed`", "a whole number", "got '0b11' (a text)"]),
    "base 60": ("seed: 1:30", ["`seed`", "a whole number", "got '1:30' (a text)"]),
    "base 60 for a fraction": ("optimizer: {lr: 1:30.5}", ["`optimizer.lr`", "'1:30.5' (a text)"]),
    "digits apart": ("seed: 1_000", ["`seed`", "a whole number", "got '1_000' (a text)"]),
    "digits of another script": ("seed: \u0663", ["`seed`", "a whole number", "(a text)"]),
    "a word for true or false": (
        "exchange: {cuda_aware: no}",
        ["`exchange.cuda_aware`", "'no' (a text)"],
    ),
    "merged mappings": ("optimizer: {<<: {lr: 1}}", ["unknown key `optimizer.<<`"]),
    "empty text": ("name: ''", ["`name`", "a text", "got ''"]),
    "empty choice": ("device: ''", ["`device`", "one of cpu, cuda", "got ''"]),
    "nothing": ("seed:", ["`seed`", "a whole number", "got nothing"]),
    "list for a number": ("seed: [1]", ["`seed`", "a whole number", "got [1] (list)"]),
    "mapping for a number": ("seed: {a: 1}", ["`seed`", "a whole number", "(dict)"]),
    "number for a list": (
        "optimizer: {decay_epochs: 3}",
        ["`optimizer.decay_epochs`", "a list of numbers", "got 3"],
    ),
    "text in a list": ("optimizer: {decay_epochs: [a]}", ["a list of numbers", "got ['a']"]),
    "short pair": ("optimizer: {betas: [0.9]}", ["`optimizer.betas`", "a list of 2 numbers"]),
    "number for a section": ("runtime: 4", ["`runtime`", "a mapping", "got 4"]),
    "nothing for a section": ("runtime:", ["`runtime`", "a mapping", "got nothing"]),
    "choice": (
        "optimizer: {kind: sdg}",
        ["`optimizer.kind`", "one of sgd, adam", "did you mean sgd?", "got 'sdg'"],
    ),
    "too small": ("optimizer: {lr: -0.1}", ["`optimizer.lr`", "at least 0", "got -0.1"]),
    "not more": ("runtime: {silence_s: 0}", ["`runtime.silence_s`", "more than 0", "got 0"]),
    "too large": ("exchange: {buffer_mib: 9999}", ["at most 8192", "got 9999"]),
    "item too small": ("optimizer: {decay_epochs: [3, 0]}", ["more than 0", "got [3, 0]"]),
    "not finite": ("optimizer: {lr: .inf}", ["`optimizer.lr`", "a number", "got inf"]),
    "not a number": ("optimizer: {lr: .nan}", ["`optimizer.lr`", "a number", "got nan"]),
    "past every float": ("optimizer: {lr: 1" + "0" * 400 + "}", ["`optimizer.lr`", "a number"]),
    "seed of 65 bits": (f"seed: {2**64}", ["`seed`", "below 2^64"]),
    "path for a name": ("name: a/b", ["`name`", "letters, digits", "got 'a/b'"]),
    "hidden file for a name": ("name: .a", ["`name`", "got '.a'"]),
    "momentum of adam": (
        "optimizer: {kind: adam, momentum: 0.9}",
        ["`optimizer.momentum`", "is of sgd, not of adam", "got 0.9"],
    ),
}


@pytest.mark.parametrize(("line", "parts"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_named_with_its_file_and_line(line, parts):
    message = mistake(lines("# a comment", line))
    assert "in my.yaml, line 5" in message
    for part in parts:
        assert part in message, message


# Keys that are paths.


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    one = loading.parse(BASE, "my.yaml", ["data.path=~/x", "model.kind=vgg11", "model.body_from=~"])
    assert (one.data.path, one.model.body_from) == ("/home/me/x", None)
    one = loading.parse(BASE.replace("path: d", "path: ~/d"), "my.yaml")
    assert one.data.path == "/home/me/d"
    one = loading.parse(BASE, "my.yaml", ["model.kind=vgg11", "model.body_from=~/a.h5"])
    assert one.model.body_from == "/home/me/a.h5"
    assert loading.parse(BASE, "my.yaml", ["data.path=./~x"]).data.path == "./~x"
    assert loading.parse(BASE, "my.yaml", ["data.path=a/~/x"]).data.path == "a/~/x"


def test_a_home_folder_that_is_not_there_is_refused():
    message = mistake(BASE, "data.path=~nobody-of-this-name/x")
    assert message.startswith("`data.path` in --set data.path=~nobody-of-this-name/x: ")
    assert "write the path in full" in message


def test_a_path_without_a_name_is_refused():
    assert "`data.path` in --set" in mistake(BASE, 'data.path="a\\0b"')


def test_a_path_that_is_not_utf_8_comes_back():
    one = loading.parse(BASE, "my.yaml")
    other = dataclasses.replace(
        one, data=dataclasses.replace(one.data, path=os.fsdecode(b"caf\xe9"))
    )
    dumped = loading.dump(other)
    assert loading.parse(dumped.encode().decode(), "dumped") == other


def test_mistakes_of_required_keys():
    message = mistake("model: {hidden: [4]}\ntrain: {epochs: 1}")
    assert message.startswith("`data.path` is required and missing in my.yaml: folder of shards")
    message = mistake("data: {path: d}\ntrain: {epochs: 1}\nmodel: {kind: mlp}")
    assert message.startswith("`model.hidden` is required and missing in my.yaml, line 3")
    message = mistake("data: {path: d}\nmodel: {hidden: []}\ntrain: {epochs: 1}")
    assert "`model.hidden`" in message
    assert "got [] (list) in my.yaml, line 2" in message


@pytest.mark.parametrize(
    ("train", "got"), [("{local_steps: 2}", "neither"), ("{epochs: 1, rounds: 2}", "both")]
)
def test_there_is_one_length(train, got):
    message = mistake(BASE.replace("{epochs: 1}", train))
    assert "either `train.epochs` or `train.rounds`" in message
    assert f"got {got} in my.yaml, line 3" in message


def test_a_bias_before_batch_norm_is_refused():
    message = mistake(BASE.replace("[4]", "[4], output_bias: true"))
    assert "`model.output_norm: none`" in message
    assert "my.yaml, line 2" in message


def test_a_key_given_twice_is_named_with_both_lines():
    message = mistake(lines("optimizer:", "  lr: 1", "  kind: sgd", "  lr: 2"))
    assert message == "`optimizer.lr` is given twice in my.yaml, lines 5 and 7"
    assert "`data` is given twice in my.yaml, lines 1 and 4" in mistake(lines("data: {}"))
    assert "`lr` is given twice in --set" in mistake(BASE, "optimizer={lr: 1, lr: 2}")


# Values.


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", "+1e-3", ".1e-2"])
def test_numbers_as_people_write_them(text):
    assert loading.parse(lines(f"optimizer: {{lr: {text}}}"), "f").optimizer.lr == 0.001
    assert loading.parse(BASE, "f", [f"optimizer.lr={text}"]).optimizer.lr == 0.001


def test_a_whole_number_is_a_number():
    lr = loading.parse(lines("optimizer: {lr: 1}"), "f").optimizer.lr
    assert lr == 1.0
    assert isinstance(lr, float)


# --set.


def test_settings_replace_the_file_and_the_last_one_wins():
    text = lines("optimizer: {lr: 0.5, momentum: 0.9}", "seed: 4")
    given_ = ["optimizer.lr=0.25", "seed=1", "seed=2", "model.hidden=[8, 9]", "data.path=a=b"]
    got = loading.parse(text, "f", given_)
    assert (got.optimizer.lr, got.optimizer.momentum) == (0.25, 0.9)
    assert (got.seed, got.model.hidden, got.data.path) == (2, [8, 9], "a=b")


def test_a_section_can_be_set_whole():
    got = loading.parse(lines("optimizer: {lr: 0.5, momentum: 0.9}"), "f", ["optimizer={lr: 2}"])
    assert (got.optimizer.lr, got.optimizer.momentum) == (2.0, 0.0)


def test_a_length_that_is_set_replaces_the_other_kind():
    rounds = BASE.replace("epochs: 1", "rounds: 7")
    assert loading.parse(BASE, "f", ["train.rounds=5"]).train == TrainConfig(rounds=5)
    assert loading.parse(rounds, "f", ["train.epochs=5"]).train == TrainConfig(epochs=5.0)
    assert loading.parse(BASE, "f", ["train={rounds: 5}"]).train == TrainConfig(rounds=5)
    assert loading.parse(BASE, "f", ["train.rounds=null"]).train == TrainConfig(epochs=1.0)
    assert "got both in --set" in mistake(BASE, "train.rounds=5", "train.epochs=5")
    assert "got neither in --set train.epochs=null" in mistake(BASE, "train.epochs=null")


@pytest.mark.parametrize("setting", ["seed", "=1", ".seed=1", "optimizer.=1", "", "a b"])
def test_a_setting_is_a_key_and_a_value(setting):
    message = mistake(BASE, setting)
    assert "--set wants key=value, such as optimizer.lr=0.1" in message
    assert repr(setting) in message


@pytest.mark.parametrize(
    ("setting", "parts"),
    {
        "optimizer.lrr=1": ["`optimizer.lrr`", "did you mean `optimizer.lr`?"],
        "optimizer={lrr: 1}": ["`optimizer.lrr`", "did you mean `optimizer.lr`?"],
        "optimizer={lr: -1}": ["`optimizer.lr`", "at least 0", "got -1"],
        "optimizer.lr=fast": ["`optimizer.lr`", "a number", "got 'fast'"],
        "optimizer.kind=adm": ["one of sgd, adam", "did you mean adam?"],
        "seed=": ["`seed`", "got nothing"],
        "seed.x=1": ["`seed`", "a mapping"],
        "train=7": ["`train`", "a mapping", "got 7"],
        "seed=[": ["cannot read the YAML"],
    }.items(),
)
def test_a_mistake_in_a_setting_names_the_setting_and_not_the_file(setting, parts):
    message = mistake(lines("optimizer: {lr: 0.5}", "seed: 3"), setting)
    assert setting in message
    assert "my.yaml" not in message
    for part in parts:
        assert part in message, message


def test_settings_that_undo_each_other():
    assert "`train`" in mistake(BASE, "train.rounds=3", "train=7")
    assert "got neither" in mistake(BASE, "train.rounds=3", "train={}")


# Writing and describing.


def floats(low, high=None):
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def values_of(field: dataclasses.Field) -> st.SearchStrategy:
    """Values that a field allows, from its type and bounds."""
    if field.type in (FilePath, FilePath | None):
        characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
        text = st.text(characters, min_size=1).filter(lambda name: not name.startswith("~"))
        return text if field.type == FilePath else st.none() | text
    if choices_of(field.type):
        return st.sampled_from(choices_of(field.type))
    kinds = [kind for kind in get_args(field.type) if kind is not NoneType]
    optional = NoneType in get_args(field.type)
    kind = kinds[0] if optional else field.type
    for bound in field.default.metadata:
        kind = Annotated[kind, bound]
    values = st.from_type(kind).filter(finite)
    return st.none() | values if optional else values


def finite(value) -> bool:
    """Whether it has no number that is none."""
    items = value if isinstance(value, list | tuple) else [value]
    return all(not isinstance(item, float) or math.isfinite(item) for item in items)


def section(cls: type, /, **fixed) -> st.SearchStrategy:
    drawn = {field.name: values_of(field) for field in dataclasses.fields(cls)}
    return st.builds(cls, **(drawn | fixed))


SUBNETS = {
    "algorithm": st.just("ist"),
    "warmup_steps": st.just(0),
    "compression": st.just("none"),
}
LOCAL_SGD = {"algorithm": st.just("local_sgd"), "compression": st.just("none")}
DATA_PARALLEL = {"algorithm": st.just("data_parallel"), "warmup_steps": st.just(0)}
valid = st.builds(
    Config,
    data=section(
        DataConfig,
        row_entries=st.none() | st.just(1.0),
        augment=st.just("none"),
        mean=st.just([]),
        std=st.just([]),
    )
    | section(
        DataConfig,
        row_entries=st.none(),
        mean=st.lists(floats(-1e30, 1e30), min_size=3, max_size=3),
        std=st.lists(floats(1e-30, 1e30), min_size=3, max_size=3),
    ),
    model=section(
        MlpConfig,
        output_bias=st.just(False),
        loss=st.sampled_from(["auto", "cross_entropy"]),
    )
    | section(MlpConfig, output_norm=st.just("none"))
    | section(
        Vgg11Config,
        channels=st.just([]) | st.lists(st.integers(1, 2**16), min_size=8, max_size=8),
        output_norm=st.just("none"),
        deal_channels=st.just(False),
    )
    | section(
        ResnetConfig,
        sections=st.sampled_from([[], [1, 2, 23, 4], [9, 1, 2**16, 1]]),
        min_blocks=st.integers(1, 22),
        channels=st.just([]) | st.lists(st.integers(1, 2**16), min_size=4, max_size=4),
    ),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True),
    seed=st.integers(0, 2**64 - 1),
    device=st.sampled_from(["cpu", "cuda"]),
    train=section(TrainConfig, epochs=floats(1e-300), rounds=st.none(), **SUBNETS)
    | section(TrainConfig, epochs=st.none(), rounds=st.integers(1), **SUBNETS)
    | section(TrainConfig, rounds=st.none(), epochs=st.just(1.0), **LOCAL_SGD)
    | section(TrainConfig, rounds=st.none(), epochs=st.just(1.0), **DATA_PARALLEL),
    optimizer=section(OptimizerConfig, kind=st.just("sgd"))
    | section(OptimizerConfig, momentum=st.just(0.0), weight_decay=st.just(0.0)),
    evaluate=section(EvaluateConfig),
    exchange=section(ExchangeConfig),
    checkpoint=section(CheckpointConfig),
    runtime=section(RuntimeConfig),
).filter(
    lambda one: (
        (one.model.kind != "resnet" or one.optimizer.kind != "rowwise_adagrad")
        and (one.device != "cpu" or one.train.precision != "tf32")
    )
)


@pytest.mark.filterwarnings("ignore:Ignoring unsupported Strict")  # which no example breaks
@settings(max_examples=150, deadline=None)
@given(valid)
def test_what_is_dumped_is_read_back(one):
    every = one.evaluate.every_epochs
    assume(every == 0 or every >= 1e-6)
    assert loading.parse(loading.dump(one), "dumped") == one


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_configuration_of_the_repository_loads(path):
    loaded = loading.load(path)
    assert loading.parse(loading.dump(loaded), "dumped") == loaded
    assert path.stem == loaded.name
    assert (loaded.train.epochs is None) == (loaded.train.rounds is not None)


def test_the_quickstart_is_the_packaged_one():
    assert (ROOT / "configs" / "quickstart.yaml").read_bytes() == loading.QUICKSTART.read_bytes()
    assert loading.load(None) == loading.load(ROOT / "configs" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.loss=softmax"], "set `model.output_norm: none`"),
        (["data.row_entries=9", "model.inputs=8"], "`data.row_entries` must be at most"),
        (["evaluate.top=[]"], "`evaluate.top` must be a list of whole numbers, one or more"),
        (["evaluate.top=[0]"], "`evaluate.top"),
        (["optimizer.kind=adagrad", "optimizer.momentum=0.9"], "not of adagrad; set it to 0"),
    ],
)
def test_keys_of_extreme_classification_are_checked_together(settings, said):
    assert said in mistake(BASE, *settings)
