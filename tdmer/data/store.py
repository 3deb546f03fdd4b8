"""Data sets in ragged memory-mapped files, for what does not fit into memory."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from tdmer.data.dataset import MultimodalDataset


class Columns(NamedTuple):
    """One split as a reader found it, before anything is copied.

    Attributes:
        inputs: modality name → one ``(t_i, f)`` array per sample, such as views of a padded array.
        labels: ``(n,)`` or ``(n, k)``.
        ids: one name per sample.
    """

    inputs: Mapping[str, Sequence[NDArray[Any] | Tensor]]
    labels: Sequence[Any] | NDArray[Any] | Tensor
    ids: Sequence[str]


def build(
    splits: Mapping[str, Columns], store: str | os.PathLike[str] | None = None
) -> dict[str, MultimodalDataset]:
    """Make data sets of what a reader found, in memory or in a store.

    Args:
        splits: split name → its columns.
        store: a new folder to stream the splits into, which is then opened; None: in memory.

    Returns:
        Split name → data set.

    Raises:
        TypeError, ValueError: as :class:`MultimodalDataset`, after the name of the split.
    """
    if store is not None:
        raise NotImplementedError
    datasets = {}
    for split, columns in splits.items():
        try:
            datasets[split] = MultimodalDataset(*columns)
        except (TypeError, ValueError) as error:
            raise type(error)(f"split {split!r}: {error}") from error
    return datasets
