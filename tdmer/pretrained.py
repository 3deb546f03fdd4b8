"""Models in a folder or on the Hugging Face Hub: options in JSON, weights in safetensors.

Nothing that is read here can run code, and nothing is believed: options and weights are compared
before memory is taken.
"""

import inspect
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as registration

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound="Pretrained")


class Pretrained(nn.Module):
    """A module that is saved, loaded and shared by its options; :class:`~tdmer.model.TDMER` is one.

    A class of your own sets both attributes in its constructor.

    Attributes:
        options: All arguments of the constructor, as JSON can hold them; mappings are by modality.
        modalities: Names of the modalities, in order.
        task_config: The task that the model was saved with, as :func:`tdmer.tasks.from_config`
            takes it; None: not known.
        extractor_config: What made its features of recordings, as
            :meth:`tdmer.features.Extractor.from_config` takes it; None: not known.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tdmer import TDMER
        >>> with TemporaryDirectory() as folder:
        ...     TDMER({"text": 300, "audio": 74}, num_classes=7).save_pretrained(folder)
        ...     model = TDMER.from_pretrained(folder)
        >>> model.modalities
        ('text', 'audio')
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    task_config: dict[str, Any] | None = None
    extractor_config: dict[str, Any] | None = None

    def extra_repr(self) -> str:
        """Show the options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        task: nn.Module | None = None,
        extractor: Any = None,
        data: str = "",
        metrics: Mapping[str, float] | None = None,
        limits: str = "",
    ) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card, ``README.md``.

        Files are replaced as a whole; a card that is there already is replaced only where
        something is said about the model.

        Args:
            folder: Where to write; it is made.
            task: What the predictions mean, for :class:`tdmer.prediction.Predictor`; one of
                :mod:`tdmer.tasks`. None: the task that the model was loaded with, if any.
            extractor: What made the features that the model was trained on, a
                :class:`tdmer.features.Extractor` or its ``config``. None: that which the model was
                loaded with, if any.
            data: For the card: what the model was trained and measured on.
            metrics: For the card: figures by name.
            limits: For the card: what the model is not to be used for.

        Raises:
            OSError: The folder cannot be written.
            TypeError: The task or the extractor has no ``config``.
        """
        from safetensors.torch import save

        described = self.task_config if task is None else _config("task", task)
        made = self.extractor_config if extractor is None else _config("extractor", extractor)
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().contiguous() for name, x in self.state_dict().items()}
        write_file(place / WEIGHTS, save(weights, metadata={"format": "pt"}))
        config = {
            "model": type(self).__name__,
            "tdmer": _version(),
            # JSON objects have no order, and other programs sort them.
            "modalities": list(self.modalities),
            "options": self.options,
            "task": described,
            "extractor": made,
        }
        write_file(place / CONFIG, f"{json.dumps(config, indent=2, default=_plain)}\n".encode())
        if data or metrics or limits or not (place / CARD).exists():
            card = _card(self, described, made, data, metrics or {}, limits)
            write_file(place / CARD, card.encode())

    @classmethod
    def from_pretrained(
        cls: type[P],
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> P:
        """Build a model of a folder or of the Hub, in evaluation mode.

        Args:
            name: A folder, or a repository of the Hub as ``"user/name"`` where there is no such
                folder.
            revision: Branch, tag or commit of the repository.
            token: Access token of the Hub; None: the one that is stored.
            cache_dir: Where downloads are kept.
            local_files_only: Whether to use only what was downloaded before.

        Raises:
            OSError: There is no such folder or repository, or a file is not there.
            ValueError: The files are not such as :meth:`save_pretrained` writes, or do not fit each
                other.
        """
        place = Path(name)
        if not place.is_dir():
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HFValidationError

            try:
                found = snapshot_download(
                    str(name),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=[CONFIG, WEIGHTS],
                )
            except HFValidationError:
                raise FileNotFoundError(
                    f"name must be a folder or 'user/name' on the Hub, got {str(name)!r}"
                ) from None
            place = Path(found)
        for file in (CONFIG, WEIGHTS):
            if not (place / file).is_file():
                raise FileNotFoundError(
                    f"{name} must hold {CONFIG} and {WEIGHTS}, as save_pretrained writes them: "
                    f"there is no {file}"
                )
        options, task, extractor = _read_config(place / CONFIG, cls)
        model = load_weights(cls, options, place / WEIGHTS)
        model.task_config, model.extractor_config = task, extractor
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        task: nn.Module | None = None,
        extractor: Any = None,
        data: str = "",
        metrics: Mapping[str, float] | None = None,
        limits: str = "",
    ) -> str:
        """Upload what :meth:`save_pretrained` writes, and return the address of the commit.

        Args:
            repo_id: ``"user/name"``; it is made where it does not exist.
            private: Whether a new repository is private; None: as the account has it.
            token: Access token of the Hub; None: the one that is stored.
            revision: Branch to commit to; None: the main one.
            commit_message: Of the commit.
            task: As in :meth:`save_pretrained`.
            extractor: As in :meth:`save_pretrained`.
            data: As in :meth:`save_pretrained`.
            metrics: As in :meth:`save_pretrained`.
            limits: As in :meth:`save_pretrained`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            about: dict[str, Any] = {"data": data, "metrics": metrics, "limits": limits}
            self.save_pretrained(folder, task=task, extractor=extractor, **about)
            commit = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        return str(commit.commit_url)


def load_weights(kind: type[M], options: Mapping[str, Any], weights: Path) -> M:
    """Build a module by its options with the weights of a safetensors file, in evaluation mode.

    Args:
        kind: Class of the module.
        options: Arguments of its constructor, which may be of any origin.
        weights: The file. Every weight must be there, of the right shape, and finite.

    Raises:
        OSError: The file is not there.
        ValueError: The file is damaged, the options are none, or they do not fit each other.

    Example:
        >>> from tempfile import NamedTemporaryFile
        >>> from safetensors.torch import save_file
        >>> with NamedTemporaryFile(suffix=".safetensors") as file:
        ...     save_file(torch.nn.Linear(2, 3).state_dict(), file.name)
        ...     load_weights(nn.Linear, {"in_features": 2, "out_features": 3}, Path(file.name))
        Linear(in_features=2, out_features=3, bias=True)
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(weights, "pt") as file:
            names = file.keys()
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{weights} must be a whole safetensors file, got {error}") from None
    try:
        model = _outline(kind, options, most=2 * len(found))
    except Exception as error:
        # Whatever options of any origin make of a constructor, it is they that are to be named.
        raise ValueError(
            f"the options beside {weights} must be those of {kind.__name__}, got {error!r}"
        ) from None
    wanted = model.state_dict()
    shapes = {name: tuple(x.shape) for name, x in wanted.items()}
    for name in sorted(shapes.keys() | found.keys()):
        if found.get(name) != shapes.get(name):
            raise ValueError(
                f"{weights} must fit its options: {name} must have shape {shapes.get(name)}, "
                f"got {found.get(name)}"
            )
    tensors = load_file(weights)
    for name, x in tensors.items():
        if x.is_floating_point() != wanted[name].is_floating_point():
            raise ValueError(f"{weights} must hold {wanted[name].dtype} in {name}, got {x.dtype}")
        if not x.isfinite().all():
            raise ValueError(f"{weights} must hold finite weights, got NaN or inf in {name}")
    types = {tensors[name].dtype for name, _ in model.named_parameters()}
    if len(types) > 1:
        raise ValueError(f"{weights} must hold weights of one dtype, got {sorted(map(str, types))}")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that whatever happens leaves the old content or the new, whole.

    Args:
        path: Where to write.
        content: What to write.

    Raises:
        OSError: It cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_file(Path(folder) / "config.json", b"{}")
        ...     (Path(folder) / "config.json").read_text()
        '{}'
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):  # where folders can be opened, so that the name lasts, too
            folder = os.open(path.parent, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        why = error.strerror or error
        raise OSError(
            f"{path} could not be written: {why}. What stood there before is unharmed"
        ) from None


def _outline(kind: type[M], options: Mapping[str, Any], most: int) -> M:
    # Tensors that have shapes but no memory. Even those take time to make, and a file of a few
    # bytes may ask for any number of layers: too many are given up.
    left = most

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {most} tensors")

    with (
        torch.device("meta"),
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ):
        return kind(**options)


def _config(name: str, thing: Any) -> dict[str, Any]:
    config = thing if isinstance(thing, Mapping) else getattr(thing, "config", None)
    if not isinstance(config, Mapping):
        home = {"task": "tdmer.tasks", "extractor": "tdmer.features"}[name]
        got = type(thing).__name__
        raise TypeError(f"{name} must be one of {home}, or have a config as they, got {got}")
    return dict(config)


def _read_config(
    path: Path, kind: type[Pretrained]
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
    """Return the options, and the task and the extractor, which files of before do not have."""
    try:
        config = json.loads(path.read_bytes())
        if config["model"] != kind.__name__:
            raise ValueError(f"one of a {config['model']}")
        modalities, options = config["modalities"], dict(config["options"])
        # What is not said must not become a default, which may be another one day.
        left_out = sorted(inspect.signature(kind).parameters.keys() - options.keys())
        if left_out:
            raise ValueError(f"options without {left_out}")
        for name, value in options.items():
            if isinstance(value, dict):
                if sorted(value) != sorted(modalities):
                    raise ValueError(f"{name} of {list(value)} for modalities {modalities}")
                options[name] = {m: value[m] for m in modalities}
        task, extractor = config.get("task"), config.get("extractor")
        for name, found in (("a task", task), ("an extractor", extractor)):
            if not isinstance(found, dict | None):
                raise ValueError(f"{name} that is a {type(found).__name__}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be one that save_pretrained of a {kind.__name__} wrote, got {error!r}"
        ) from None
    return options, task, extractor


def _plain(value: Any) -> Any:
    # A number of NumPy's, or another mapping than a dict.
    return dict(value) if isinstance(value, Mapping) else value.item()


def _version() -> str:
    from importlib.metadata import version

    return version("tdmer")


def _card(
    model: Pretrained,
    task: Mapping[str, Any] | None,
    extractor: Mapping[str, Any] | None,
    data: str,
    metrics: Mapping[str, float],
    limits: str,
) -> str:
    kind, options = type(model).__name__, dict(model.options)
    dims = options.pop("dims", {})
    lines = [
        "---",
        "library_name: tdmer",
        "tags: [multimodal, emotion-recognition, sentiment-analysis, pytorch]",
        "---",
        "",
        f"# {kind}",
        "",
        f"A {kind} of [tdmer](https://pypi.org/project/tdmer) {_version()}, with "
        f"{sum(p.numel() for p in model.parameters()):,} parameters.",
        "",
        "```python",
        f"from tdmer import {kind}",
        "",
        f'model = {kind}.from_pretrained("this repository")',
        "```",
        "",
        "## Inputs",
        "",
        *_table("modality", "features", ((m, dims[m]) for m in model.modalities if m in dims)),
        "",
        "Made as those of the training data were, and not normalised: the model does so itself.",
        "",
        *([*_table("of recordings", "made by", extractor.items()), ""] if extractor else []),
        "## Options",
        "",
        *_table("option", "value", options.items()),
        "",
        "## Task",
        "",
        *(_table("option", "value", task.items()) if task else ["Not stated."]),
        "",
        "## Data",
        "",
        data or "Not stated.",
        "",
        "## Metrics",
        "",
        *(_table("metric", "value", metrics.items()) if metrics else ["Not stated."]),
        "",
        "## Limits",
        "",
        limits or "Not stated.",
        "",
    ]
    return "\n".join(lines)


def _table(first: str, second: str, rows: Iterable[tuple[str, Any]]) -> list[str]:
    return [
        f"| {first} | {second} |",
        "|---|---|",
        *(f"| {k} | {f'{v:.4g}' if isinstance(v, float) else v} |" for k, v in rows),
    ]
