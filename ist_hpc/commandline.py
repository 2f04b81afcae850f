"""What the command lines of all commands have in common."""

import argparse
from typing import Any, NoReturn

from ist_hpc.errors import InputError


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of its texts, and raises `InputError` for a wrong command line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage: a mistake is one line, once for all ranks."""
        raise InputError(f"{message}; see {self.prog} --help")
