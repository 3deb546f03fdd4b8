"""What stands before a model: inputs of several modalities, checked, completed and normalised."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tdmer._checks import check_features, check_mask, check_names
from tdmer._statistics import FeatureStatistics
from tdmer.layers.normalization import InputNormalization
from tdmer.masks import unless_full


class Given(NamedTuple):
    """What :class:`Inputs` returns, each by modality, in the order of the names."""

    sequences: dict[str, Tensor]
    """Normalised features, ``(b, t_m, f_m)``; a single pad where a modality was left out."""
    masks: dict[str, Tensor | None]
    """True where a step is real, ``(b, t_m)``; None where it can be seen that all are."""
    present: dict[str, Tensor]
    """True where a sample has a real step of the modality, ``(b,)``."""


class Inputs(nn.ModuleDict):
    """The normalisation of every modality by name, behind the checks of what a model is given.

    The order of ``dims`` changes nothing but what messages list.

    Args:
        dims: Feature width of every modality by name.

    Raises:
        TypeError: Names are no strings, or a width is not an int.
        ValueError: A name cannot name a submodule, or a width is below 1.

    Example:
        >>> inputs = Inputs({"text": 2, "audio": 3})
        >>> given = inputs({"text": torch.ones(1, 4, 2)})
        >>> {name: x.shape for name, x in given.sequences.items()}
        {'audio': torch.Size([1, 1, 3]), 'text': torch.Size([1, 4, 2])}
        >>> given.present
        {'audio': tensor([False]), 'text': tensor([True])}
    """

    dims: dict[str, int]

    def __init__(self, dims: Mapping[str, int]) -> None:
        check_names("dims", list(dims))
        super().__init__({m: InputNormalization(dims[m]) for m in sorted(dims)})
        self.dims = dict(dims)

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
    ) -> Given:
        """Give every modality a normalised sequence, and a mask unless all of it is real.

        Args:
            inputs: As :meth:`tdmer.model.TDMER.forward` takes them.
            masks: Likewise.

        Raises:
            TypeError: Inputs are not floating point, or masks are not bool.
            ValueError: Names, widths or batch sizes do not fit.
        """
        inputs, masks = self._checked(inputs, {} if masks is None else masks)
        first = next(iter(inputs.values()))
        everywhere = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
        sequences: dict[str, Tensor] = {}
        needed: dict[str, Tensor | None] = {}
        present: dict[str, Tensor] = {}
        for m, normalization in self.items():
            x, mask = inputs.get(m), masks.get(m)
            if x is None or x.shape[1] == 0:
                x = first.new_zeros(first.shape[0], 1, self.dims[m])
                mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=first.device)
            needed[m] = mask = unless_full(mask)
            sequences[m] = normalization(x, mask)
            present[m] = everywhere if mask is None else mask.any(dim=1)
        return Given(sequences, needed, present)

    def fit(self, batches: Iterable[Any] | Dataset[Any]) -> dict[str, int]:
        """Fit the normalisation of every modality to a training set, in one pass.

        PyTorch's random state is afterwards what it was, even if a loader has shuffled.

        Args:
            batches: A data set of :mod:`tdmer.data`, or tuples that begin with ``inputs, masks`` as
                :meth:`forward` takes them, such as :class:`tdmer.data.Batch`; or a single one.

        Returns:
            Per modality, the number of real entries that were NaN or infinite; they, and such
            entries in later inputs, are replaced by the mean.

        Raises:
            TypeError: A batch does not begin with ``inputs, masks``, or as :meth:`forward`.
            ValueError: No sample has a real, finite entry of a modality, or as :meth:`forward`.
        """
        normalizations = cast(Mapping[str, InputNormalization], self)
        statistics = {
            m: FeatureStatistics(width, normalizations[m].mean.dtype)
            for m, width in self.dims.items()
        }
        if isinstance(batches, Dataset):
            # Here, since a model alone needs no readers.
            from tdmer.data.batch import collate

            batches = DataLoader(batches, batch_size=128, collate_fn=collate)
        every: Iterable[Any] = [batches] if _is_batch(batches) else batches
        with torch.random.fork_rng(devices=[]):
            for batch in every:
                if not _is_batch(batch):
                    raise TypeError(
                        "batches must yield tuples that begin with inputs and masks, as a loader "
                        f"with collate_fn=tdmer.data.collate does, got {type(batch).__name__}"
                    )
                inputs, masks = self._checked(batch[0], batch[1] or {})
                for m, x in inputs.items():
                    statistics[m].update(x, masks[m])
        empty = [m for m, found in statistics.items() if not found.count.any()]
        if empty:
            raise ValueError(
                f"batches must hold a real, finite entry of every modality, got none of {empty}; "
                "build the model without what no training sample has"
            )
        for m, found in statistics.items():
            normalizations[m].take(found)
        return {m: found.nonfinite for m, found in statistics.items()}

    def _checked(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """Check what is given, and return it with vectors as sequences of one step."""
        for name, mapping in (("inputs", inputs), ("masks", masks)):
            if not isinstance(mapping, Mapping):
                raise TypeError(
                    f"{name} must be a mapping by modality, got {type(mapping).__name__}"
                )
            unknown = [m for m in mapping if m not in self.dims]
            if unknown:
                raise ValueError(f"{name} must be of {list(self.dims)}, got {unknown}")
        if not inputs:
            raise ValueError(f"inputs must hold one of {list(self.dims)}, got none")
        first = next(iter(inputs))
        sequences: dict[str, Tensor] = {}
        steps: dict[str, Tensor | None] = {}
        for m, x in inputs.items():
            mask = masks.get(m)
            check_features(f"inputs[{m!r}]", x, width=self.dims[m])
            if x.ndim == 2:
                x = x.unsqueeze(1)
                mask = mask.unsqueeze(1) if isinstance(mask, Tensor) and mask.ndim == 1 else mask
            check_features(f"inputs[{m!r}]", x, ndim=3)
            check_mask(f"masks[{m!r}]", mask, x.shape[:2])
            # One with the first, never in a set: an exported size is a symbol.
            if x.shape[0] != inputs[first].shape[0]:
                sizes = {m: x.shape[0] for m, x in inputs.items()}
                raise ValueError(f"inputs must have one batch size, got {sizes}")
            sequences[m], steps[m] = x, mask
        return sequences, steps


def _is_batch(value: Any) -> bool:
    """Whether this is a tuple that begins with inputs and masks."""
    pair = value[:2] if isinstance(value, tuple | list) else ()
    return len(pair) == 2 and isinstance(pair[0], Mapping) and isinstance(pair[1], Mapping | None)
