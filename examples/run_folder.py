"""The folder of a run: one run at a time, whole files only, and a state to go on from.

Nothing that is read here can run code: JSON, and what torch.load reads with weights_only.
"""

import io
import json
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from task import Task

from tdmer.pretrained import CARD, CONFIG, WEIGHTS, Pretrained, write_file

LIMITS = (
    "Measured on the test split of these data alone. Other speakers, languages, recordings and "
    "features were not tried."
)
NORMALIZED = (
    "Every feature of {} was standardised within each group, such as the clips of a speaker, and "
    "has to be before a prediction: tdmer.data.normalize_by_group."
)
FORMAT = "tdmer-train-4"  # of the checkpoint: another number where its content changes


class RunFolder:
    """What a run writes; of several processes the main one alone does.

    A run that is not finished has a checkpoint.pt, a finished one has metrics.json and the files of
    save_pretrained, both have run.json. The folder belongs to one run until its process ends.

    Args:
        path: Of the folder; it is made.
        config: All that the figures depend on, for JSON. A run goes on with the same one only.
        resume: Whether to go on with the run in the folder, if there is one.
        overwrite: Whether to give up an unfinished run in the folder.

    Attributes:
        state: What :meth:`checkpoint` got last, empty for a new run.
        finished: Whether the run to go on with has nothing left to do.

    Raises:
        OSError: The folder cannot be written.
        ValueError: The folder is in use, holds an unfinished run that is neither to be resumed nor
            overwritten, or a run to resume that is of another configuration or damaged.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], *, resume: bool, overwrite: bool
    ) -> None:
        self.path = path
        self.state: dict[str, Any] = {}
        self.finished = False
        self._config = config
        self._main = PartialState().is_main_process
        self._checkpoint = path / "checkpoint.pt"
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path, self._main)
        unfinished = self._checkpoint.exists() and not overwrite
        if unfinished and not resume:
            raise ValueError(
                f"{path} holds an unfinished run: --resume goes on with it, "
                "--overwrite gives it up, --out takes another folder"
            )
        self.finished = resume and not unfinished and (path / "metrics.json").exists()
        if unfinished or self.finished:
            ways = ", another --out, or --overwrite"
            _refuse_changes(path / "run.json", config, advice=ways)
        if unfinished:
            self.state = _read(self._checkpoint)
        if self._main:
            for leftover in path.glob("*.tmp"):  # of a run that was killed while it wrote
                leftover.unlink()
            if not unfinished and not self.finished:
                for name in ("checkpoint.pt", "metrics.json", CONFIG, WEIGHTS, CARD):
                    (path / name).unlink(missing_ok=True)
                write(path / "run.json", to_json(config))

    def checkpoint(self, **state: Any) -> None:
        """Keep a state from which the run can go on."""
        if self._main:
            content = io.BytesIO()
            torch.save({"format": FORMAT, **state}, content)
            write(self._checkpoint, content.getvalue())

    def finish(
        self, metrics: dict[str, Any], model: Pretrained | None = None, task: Task | None = None
    ) -> None:
        """Keep the results, a model with its task if there is one, and give up the checkpoint."""
        if self._main:
            if model is not None:
                data = [f"- {name}, SHA-256 {x}" for name, x in self._config["data"].items()]
                if of := self._config["samples"]["normalize_groups"]:
                    names = self._config["model"]["dims"] if of is True else of
                    data += ["", NORMALIZED.format(", ".join(names))]
                card: dict[str, Any] = {"data": "\n".join(data), "metrics": metrics["test"]}
                card["limits"] = LIMITS
                model.save_pretrained(self.path, task=task, **card)
            write(self.path / "metrics.json", to_json(metrics))
            self._checkpoint.unlink(missing_ok=True)


def chosen(folder: Path, config: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the step and the modalities that a finished run with the same options chose.

    Raises:
        OSError: The run is not there, or not finished.
        ValueError: The run had other options.
    """
    _refuse_changes(folder / "run.json", config, but=("training.steps", "training.refit"))
    found = from_json(folder / "metrics.json")
    if "valid" not in found:
        raise ValueError(f"{folder} must be a run that chose in validation, got a refit")
    return int(found["step"]), list(found["modalities"])


def write(path: Path, content: bytes) -> None:
    """Write a file of a run, whole or not at all."""
    try:
        write_file(path, content)
    except OSError as error:
        raise OSError(f"{error}: mend this, then --resume") from None


def to_json(content: Any) -> bytes:
    """Format a JSON file; JSON has no NaN or infinity: what is undefined is null."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return f"{json.dumps(finite, indent=2)}\n".encode()


def from_json(path: Path) -> Any:
    """Read what :func:`to_json` made, null as NaN."""

    def undefined(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: math.nan if value is None else value for name, value in entries.items()}

    return json.loads(path.read_bytes(), object_hook=undefined)


def _lock(folder: Path, main: bool) -> FileLock:
    lock, free = FileLock(folder / ".lock"), [True]
    if main:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            free = [False]
    if not broadcast_object_list(free)[0]:
        raise ValueError(f"{folder} is in use by another run: --out takes another folder")
    return lock


def _refuse_changes(
    path: Path, config: dict[str, Any], but: Collection[str] = (), advice: str = ""
) -> None:
    try:
        before, now = _flat(json.loads(path.read_bytes())), _flat(config)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. --overwrite starts anew") from None
    changes = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in but and before.get(name) != now.get(name)
    ]
    if changes:
        raise ValueError(
            f"{path} is of another run: {'; '.join(changes)}. Give the same options{advice}"
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{part}.{name}": value
        for part, entries in config.items()
        for name, value in entries.items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
    except Exception as error:
        # Whatever a damaged file makes of these lines, it is the file that is to be named.
        raise ValueError(
            f"{path} must be a whole checkpoint, got {error!r}. --overwrite starts anew"
        ) from None
    return state
