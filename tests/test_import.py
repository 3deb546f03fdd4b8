"""What importing costs and in which order, and that every public name is where it is promised."""

import ast
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tdmer

HEAVY = {
    *("transformers", "huggingface_hub", "safetensors", "accelerate"),
    *("sklearn", "matplotlib", "pandas"),
    *("av", "faster_whisper", "opensmile", "ai_edge_litert"),
}
# The rooms of the package from the ground floor up; each imports from the floors below only.
FLOORS = (
    "_checks",
    "masks _statistics",
    "losses layers fusion metrics data pretrained",
    "tasks inputs",
    "model",
    "objective encoders",
    "features trainer baselines",
    "prediction",
    "viz",
    "__main__",
)


def imported_by(statement: str) -> set[str]:
    """Return all that a fresh interpreter has imported after the statement."""
    command = [sys.executable, "-c", f"import sys\n{statement}\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def imports_in(path: Path, package: str) -> set[str]:
    """Return the full names of what a file of a package imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{home}.{alias.name}" for alias in node.names}
    return names


def test_the_package_itself_imports_nothing_heavy():
    assert imported_by("import tdmer") & {"torch", "numpy", "scipy", *HEAVY} == set()


def test_the_model_and_losses_import_torch_only():
    loaded = imported_by("from tdmer import TDMER, TDMERLoss, Sentiment, cmd_loss")
    assert loaded & {"torch", "scipy", *HEAVY} == {"torch"}


def test_the_core_imports_nothing_heavy():
    core = {module.name for module in pkgutil.walk_packages(tdmer.__path__, "tdmer.")}
    core = {name for name in core if not name.startswith(("tdmer.viz", "tdmer.baselines"))}
    loaded = imported_by(f"import {', '.join(core)}")
    assert core <= loaded
    assert loaded & {"tdmer.viz", "tdmer.baselines", *HEAVY} == set()


def test_rooms_import_from_below():
    home = Path(tdmer.__file__).parent
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
    for path in home.rglob("*.py"):
        package = ("tdmer", *path.relative_to(home).parts[:-1])
        room = (*package, path.stem)[1]
        if room == "__init__":  # It only says where each public name lives.
            continue
        assert room in floor_of, f"{room} must have a floor"
        names = imports_in(path, ".".join(package))
        others = {name.split(".")[1] for name in names if name.startswith("tdmer.")} - {room}
        wrong = {other for other in others if floor_of.get(other, 99) >= floor_of[room]}
        assert not wrong, f"{path} imports {wrong}"


def test_every_public_name_resolves():
    for name in tdmer.__all__:
        assert getattr(tdmer, name).__name__ == name
    assert set(tdmer.__all__) <= set(dir(tdmer))
    assert tdmer.__version__ == version("tdmer")
    assert tdmer.layers.CrossAttention.__module__ == "tdmer.layers.cross_attention"


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'tdmer' has no attribute 'cmd'"):
        tdmer.cmd  # noqa: B018
