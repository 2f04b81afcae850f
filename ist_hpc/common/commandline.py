"""The common parts of all command lines."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ist_hpc import __version__
from ist_hpc.common.decimals import number, whole, whole_from
from ist_hpc.common.disk.names import path_of
from ist_hpc.common.errors import InputError
from ist_hpc.common.mpi_environment import rank_of_launcher

_MOST_MESSAGE = 600  # characters


def given_path(text: str) -> Path:
    """The type of every option that is a path: expands a `~` that the shell left."""
    try:
        return path_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count_from(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, of at least `least`."""

    def count(text: str) -> int:
        try:
            return whole_from(least, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return count


count = count_from(1)
"""The type of an option that is a number of repetitions."""


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of its texts, and raises `InputError` for a wrong command line.

    Options of the types int and float accept `decimals` only.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)
        self.register("type", int, whole)
        self.register("type", float, number)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage: a mistake is one line, once for all ranks."""
        if len(message) > _MOST_MESSAGE:  # it repeats the arguments, which may be pages
            message = f"{message[:_MOST_MESSAGE]} ..."
        raise InputError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help and version once, not on every rank."""
        if rank_of_launcher() == 0:
            super()._print_message(message, file)


def add_configuration(parser: argparse.ArgumentParser, such_as: str = "") -> None:
    """Add --config and --set; a configuration must be given if one is named as an example."""
    words: dict[str, Any] = {"metavar": "FILE", "help": "a YAML configuration"}
    if such_as:
        words = {"required": True, "help": f"such as {such_as}"}
    parser.add_argument("--config", type=given_path, **words)
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="values that replace the file's",
    )


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version."""
    parser.add_argument("--version", action="version", version=f"ist_hpc {__version__}")
