"""What importing costs, and that every public name is where it is promised."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import tdmer

HEAVY = ("transformers", "scipy", "sklearn", "matplotlib", "pandas", "accelerate")


def imported_by(statement: str, *modules: str) -> list[str]:
    program = f"import sys\n{statement}\nprint(*[m for m in {modules!r} if m in sys.modules])"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_package_itself_imports_nothing_heavy():
    assert imported_by("import tdmer", "torch", "numpy", *HEAVY) == []


def test_the_model_and_losses_import_torch_only():
    statement = "from tdmer import TDMER, TDMERLoss, Sentiment, cmd_loss"
    assert imported_by(statement, "torch", *HEAVY) == ["torch"]


def test_every_public_name_resolves():
    for name in tdmer.__all__:
        assert getattr(tdmer, name).__name__ == name
    assert set(tdmer.__all__) <= set(dir(tdmer))
    assert tdmer.__version__ == version("tdmer")
    assert tdmer.layers.CrossAttention.__module__ == "tdmer.layers.cross_attention"


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'tdmer' has no attribute 'cmd'"):
        tdmer.cmd  # noqa: B018
