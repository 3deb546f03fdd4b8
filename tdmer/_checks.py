"""The argument checks of the package.

They look at what is free to look at (names, rank, width, dtype, option ranges) and never at the
values of a tensor, which would make a GPU wait.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def check_features(
    name: str, x: Tensor, *, ndim: int | None = None, width: int | None = None
) -> None:
    """Raise unless ``x`` is floating point with the given rank and last axis."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.is_nested:
        rule = "be padded, with a mask (Tensor.to_padded_tensor, tdmer.data.from_sequences)"
        raise TypeError(f"{name} must {rule}, got a nested tensor")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {tuple(x.shape)}")
    if x.ndim < 1 or (width is not None and x.shape[-1] != width):
        rule = "a feature axis" if width is None else f"{width} features on its last axis"
        raise ValueError(f"{name} must have {rule}, got shape {tuple(x.shape)}")


def check_same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors have one shape."""
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}, "
            f"got {tuple(x.shape)}"
        )


def check_mask(name: str, mask: Tensor | None, shape: Sequence[int]) -> None:
    """Raise unless ``mask`` is None or a bool tensor of ``shape`` (True where a value is real)."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor, True where a step is real, got {got}")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(mask.shape)}")


def check_weights(name: str, weights: Tensor | None, shape: Sequence[int]) -> None:
    """Raise unless ``weights`` is None or a floating point tensor of ``shape``."""
    if weights is None:
        return
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"{name} must be a floating point tensor, got {got}")
    if tuple(weights.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(weights.shape)}")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_real(name: str, value: float, *, least: float = 0.0, below: float = float("inf")) -> None:
    """Raise unless ``least <= value < below``."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= value < below:
        raise ValueError(f"{name} must be in [{least}, {below}), got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above 0."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_names(name: str, names: Sequence[str], *, least: int = 1) -> None:
    """Raise unless ``names`` are different strings that can name a submodule."""
    if isinstance(names, str) or not all(isinstance(entry, str) for entry in names):
        raise TypeError(f"{name} must be a sequence of strings, got {names!r}")
    if len(set(names)) != len(names) or len(names) < least:
        raise ValueError(f"{name} must hold at least {least} different names, got {list(names)}")
    reserved = torch.nn.ModuleDict()
    for entry in names:
        if not entry or "." in entry or hasattr(reserved, entry):
            raise ValueError(
                f"{name} must not be empty, hold a dot or be an attribute of torch.nn.ModuleDict "
                f"(such as 'values'), got {entry!r}"
            )


def per_modality(name: str, value: T | Mapping[str, T], modalities: Sequence[str]) -> dict[str, T]:
    """Return one value for each modality; raise if a mapping does not name exactly those."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(modalities, value)
    if set(value) != set(modalities):
        raise ValueError(
            f"{name} must have an entry for each of {list(modalities)}, got {list(value)}"
        )
    return {modality: value[modality] for modality in modalities}
