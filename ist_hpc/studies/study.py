"""What a study compares: methods, the settings of each, and its runs in order; pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ist_hpc.common.errors import InputError

FORMS = "ist[:J], local_sgd[:J], data_parallel[:fp16], ddp, sgd (one rank)"
_NO_LOCAL_STEPS = ("data_parallel", "ddp")
_LABEL = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Method:
    """A way to train.

    name         as given: `ist:20`, `data_parallel:fp16`, `ddp@high-rate`
    settings     its settings in a configuration, as KEY=VALUE
    one_rank     whether it runs on one rank only
    """

    name: str
    settings: tuple[str, ...]
    one_rank: bool = False

    @property
    def base(self) -> str:
        """The name without its label."""
        return self.name.partition("@")[0]

    @property
    def has_local_steps(self) -> bool:
        """Whether `train.local_steps` changes the training, and not only its reports."""
        return self.base.partition(":")[0] not in _NO_LOCAL_STEPS


@dataclass(frozen=True)
class Planned:
    """A run of a study; `number` is its repeat or its seed."""

    method: Method
    ranks: int
    number: int

    @property
    def key(self) -> tuple[str, int, int]:
        """Identifies the run in its study."""
        return (self.method.name, self.ranks, self.number)

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{re.sub('[:@]', '-', self.method.name)}-n{self.ranks}-{self.number}"


def parse_method(name: str) -> Method:
    """The method of a name. Raises `InputError`."""
    base, at, label = name.partition("@")
    kind, colon, detail = base.partition(":")
    if not at or _LABEL.fullmatch(label):
        if kind in ("ist", "local_sgd") and (not colon or re.fullmatch("[1-9][0-9]*", detail)):
            local_steps = (f"train.local_steps={detail}",) if colon else ()
            return Method(name, (f"train.algorithm={kind}", *local_steps))
        if base in ("data_parallel", "data_parallel:fp16"):
            compression = f"train.compression={detail or 'none'}"
            return Method(name, ("train.algorithm=data_parallel", compression))
        if base == "ddp":
            return Method(name, ("train.algorithm=ddp",))
        if base == "sgd":  # one rank deals everything to itself: a plain loop, without a launch
            return Method(name, ("train.algorithm=ist",), one_rank=True)
    raise InputError(
        f"--methods: no method {name!r}; there are {FORMS}; add @LABEL to have one twice with "
        "settings of its own"
    )


def parse_methods(names: Sequence[str]) -> list[Method]:
    """The methods of a command line, each once. Raises `InputError`."""
    methods = [parse_method(name) for name in names]
    folders = [Planned(method, 1, 0).folder for method in methods]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            other = names[folders.index(folder)]
            what = "is there twice" if other == names[index] else f"has the folder of {other}"
            raise InputError(f"--methods: {names[index]} {what}")
    return methods


@dataclass(frozen=True)
class SettingsFor:
    """`--set-for METHOD[/RANKS] KEY=VALUE ...`: settings of one method, on `ranks` ranks or all."""

    method: str
    ranks: int | None
    settings: tuple[str, ...]


def parse_settings_for(
    given: Sequence[Sequence[str]], methods: Sequence[Method]
) -> list[SettingsFor]:
    """The values of all `--set-for`. Raises `InputError` for a method that is not in the study."""
    parsed = []
    names = [method.name for method in methods]
    for selector, *settings in given:
        name, slash, ranks = selector.partition("/")
        if name not in names or (slash and not re.fullmatch("[1-9][0-9]*", ranks)):
            raise InputError(
                f"--set-for wants METHOD or METHOD/RANKS, the method one of {', '.join(names)}; "
                f"got {selector!r}"
            )
        if not settings:
            raise InputError(f"--set-for {selector} wants settings: KEY=VALUE ...")
        parsed.append(SettingsFor(name, int(ranks) if slash else None, tuple(settings)))
    return parsed


def settings_of(
    run: Planned, common: Sequence[str], special: Sequence[SettingsFor], seeds: bool
) -> list[str]:
    """All settings of a run, later ones replacing earlier ones.

    seeds  whether the run's number is its seed, which then replaces `{seed}` in a setting
    """
    own = [
        setting
        for settings in special
        if settings.method == run.method.name and settings.ranks in (None, run.ranks)
        for setting in settings.settings
    ]
    settings = [*common, *run.method.settings, *own]
    if seeds:
        settings = [*(text.replace("{seed}", str(run.number)) for text in settings)]
        settings.append(f"seed={run.number}")
    return settings


def plan_runs(
    methods: Sequence[Method], ranks: Sequence[int], numbers: Sequence[int]
) -> list[Planned]:
    """All runs, in the order in which they are made.

    They are sorted by number, then by ranks, then by method, so that a slow spell of the machine
    hits all methods equally.
    """
    runs = [
        Planned(method, 1 if method.one_rank else count, number)
        for number, count, method in product(numbers, sorted(set(ranks)), methods)
    ]
    return list(dict.fromkeys(runs))


def by_method(rows: Sequence[Mapping[str, object]]) -> dict[tuple[str, int], list[int]]:
    """Places of the rows of each (method, ranks), methods in their order, then by ranks."""
    groups: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((str(row["method"]), int(str(row["ranks"]))), []).append(place)
    order = list(dict.fromkeys(method for method, _ in groups))
    return dict(sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))
