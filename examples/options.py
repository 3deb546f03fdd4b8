"""Options with ranges, and options that are the arguments of a class."""

import argparse
import inspect
import math
from collections.abc import Callable
from typing import Any


def number(kind: type, least: float = 0, below: float = math.inf) -> Callable[[str], Any]:
    """Return what reads a number of a range from the command line."""

    def read(text: str) -> Any:
        if not least <= kind(text) < below:
            raise argparse.ArgumentTypeError(f"must be in [{least}, {below}), got {text}")
        return kind(text)

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


def add_arguments(parser: argparse.ArgumentParser, part: type) -> None:
    """Add every argument of a class whose default is a number or a word, as --its-name."""
    for name, argument in inspect.signature(part).parameters.items():
        kind, option = type(argument.default), f"--{name.replace('_', '-')}"
        if kind in (int, float, str):
            parser.add_argument(
                option, type=kind, default=argument.default, help=f"of {part.__name__}"
            )


def take_arguments(options: dict[str, Any], part: type) -> dict[str, Any]:
    """Remove the arguments of a class from the options, and return them."""
    names = [name for name in inspect.signature(part).parameters if name in options]
    return {name: options.pop(name) for name in names}
