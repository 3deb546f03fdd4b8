"""Features of each speaker, or of any other group, brought to one mean and spread."""

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from tdmer._checks import check_choice
from tdmer._statistics import FeatureStatistics
from tdmer.data.dataset import MultimodalDataset, as_ids


@dataclass(frozen=True)
class _Normalized:
    """The sequences of another data set, each by the statistics of its group."""

    steps: Any
    numbers: NDArray[np.int64]
    means: list[Float64[Tensor, " f"]]
    scales: list[Float64[Tensor, " f"]]

    def __getitem__(self, index: int) -> Float[Tensor, "t f"]:
        group = self.numbers[index]
        centred = self.steps[index].double() - self.means[group]
        found: Tensor = (centred / self.scales[group]).float()
        return found


def normalize_by_group(
    data: MultimodalDataset, groups: Iterable[Any], *, modalities: Collection[str] | None = None
) -> MultimodalDataset:
    """Standardise every feature within each group, as in speaker normalisation.

    People differ in pitch, loudness and the shape of their faces by more than their emotions do.
    With the mean of each group at 0 and its standard deviation at 1 what remains is how a clip
    differs from others of the same speaker. Labels are not read, so that the clips of a new speaker
    are normalised as those of training are: by themselves, several together. Two conditions: the
    groups hold emotions in similar shares, since what all clips of a group have in common is gone,
    and they hold enough clips to tell a mean.

    A feature that is constant in a group is centred and keeps its scale. NaN and infinite entries
    stay and count in no statistic. The statistics of one group are computed at a time, in float64;
    steps stay where they are, in memory or in a file, and are normalised as they are read.

    Args:
        data: The data set; each split by itself or all together, as groups are in one split only.
        groups: The group of every sample, a name or whole number, such as the speaker or the video.
        modalities: Those to normalise, such as voice and face; the others stay as they are. None:
            all.

    Returns:
        The data set with the same samples in the same order.

    Raises:
        TypeError: ``modalities`` is a single string.
        ValueError: Groups that are not one for each sample, or one with a single step of some
            modality, of which nothing would remain; or modalities that the data do not have.

    Example:
        >>> voice = np.array([[110.0], [130.0], [210.0], [190.0]])
        >>> data = MultimodalDataset({"voice": voice[:, None]}, labels=[0, 1, 1, 0])
        >>> same = normalize_by_group(data, ["Ann", "Ann", "Bob", "Bob"])
        >>> torch.cat([sample.inputs["voice"] for sample in same]).flatten()
        tensor([-1.,  1.,  1., -1.])
    """
    names = as_ids("groups", groups)
    if len(names) != len(data):
        raise ValueError(f"groups must be one per sample, {len(data)}, got {len(names)}")
    if isinstance(modalities, str):
        raise TypeError(f"modalities must be a collection of names, got the string {modalities!r}")
    for modality in modalities or ():
        check_choice("modalities", modality, data.dims)
    chosen = data.dims if modalities is None else modalities
    kinds, numbers = np.unique(names, return_inverse=True)
    members = [np.flatnonzero(numbers == number) for number in range(len(kinds))]
    by_name = dict(zip(kinds.tolist(), members, strict=True))
    normalized = copy.copy(data)
    normalized._steps = {
        modality: _Normalized(steps, numbers, *_statistics(modality, steps, by_name))
        if modality in chosen
        else steps
        for modality, steps in data._steps.items()
    }
    return normalized


def _statistics(
    modality: str, steps: Any, members: dict[str, NDArray[Any]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the mean and the scale of every feature in every group."""
    means, scales = [], []
    for name, places in members.items():
        x = torch.cat([steps[int(place)] for place in places])
        if len(x) == 1:
            raise ValueError(
                f"groups must have no or several steps of each modality, got one of {modality!r} "
                f"in group {name!r}: join it with another, leave its samples out, or name the "
                "modalities that are to be normalised"
            )
        found = FeatureStatistics(x.shape[1])
        found.update(x.unsqueeze(0))
        means.append(found.mean)
        scales.append(found.scale)
    return means, scales
