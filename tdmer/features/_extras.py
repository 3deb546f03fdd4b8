"""Packages of the extras, imported when they are needed."""

from importlib import import_module
from typing import Any


def package(name: str, extra: str) -> Any:
    """Return a package of an extra; raise ImportError that says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        message = f'{name} must be installed: pip install "tdmer[{extra}]"'
        raise ModuleNotFoundError(message, name=error.name) from error
