"""The whole network: from feature sequences of several modalities to a prediction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import (
    check_choice,
    check_count,
    check_features,
    check_mask,
    check_names,
    per_modality,
)
from tdmer.fusion.tcp import MeanFusion, TCPFusion
from tdmer.layers.cross_attention import CrossModalEncoder
from tdmer.layers.decoupling import Decoupler
from tdmer.layers.edges import EdgeWeights
from tdmer.layers.normalization import InputNormalization
from tdmer.layers.temporal import TemporalConv
from tdmer.masks import masked_mean, unless_full

COMMON = "common"
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class TDMEROutput(NamedTuple):
    """What :class:`TDMER` returns. Dicts are keyed by modality, ``m`` counts them in order."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    fused: Tensor
    """``h``, the fused feature, ``(b, d)``."""
    weights: dict[str, Tensor]
    """``w``, fusion weight of each branch (``"common"`` and the modalities), ``(b,)``."""
    branch_logits: dict[str, Tensor]
    """Logits of each branch alone, ``(b, k)``."""
    masks: dict[str, Tensor]
    """True where a step is real, ``(b, t_m)``."""
    present: Tensor
    """True where a sample has the modality, ``(b, m)``."""
    features: dict[str, Tensor]
    """``X_m``, temporal features, ``(b, t_m, d)``; 0 in padded steps, as all sequences here."""
    common: dict[str, Tensor]
    """``C_m``, modality-invariant features, ``(b, t_m, d)``."""
    private: dict[str, Tensor]
    """``P_m``, modality-specific features, ``(b, t_m, d)``."""
    reconstructed: dict[str, Tensor]
    """``D_m``, reconstruction of ``X_m``, ``(b, t_m, d)``."""
    enhanced: dict[str, Tensor]
    """``P_m^e``, private features after cross-modal attention, ``(b, t_m, d)``."""
    common_pooled: Tensor
    """Masked means of ``C_m``, ``(b, m, d)``."""
    enhanced_pooled: Tensor
    """Masked means of ``P_m^e``, ``(b, m, d)``."""
    common_logits: Tensor
    """Logits of each ``C_m`` by the shared head, ``(b, m, k)``."""
    enhanced_logits: Tensor
    """Logits of each ``P_m^e`` by its own head, ``(b, m, k)``."""
    common_edges: Tensor
    """``[b, p, q]``: how strongly ``C_q`` learns from ``C_p``, ``(b, m, m)``."""
    enhanced_edges: Tensor
    """``[b, p, q]``: how strongly ``P_q^e`` learns from ``P_p^e``, ``(b, m, m)``."""


class TDMER(nn.Module):
    """Task-driven multimodal emotion recognition.

    Inputs are normalised, brought to one width by a convolution per modality, split into common
    and private features (Eq. 1), the private ones are enhanced by cross-modal attention, and the
    pooled parts are fused with weights that estimate their true class probability (Eqs. 7-13).
    The losses are computed by :class:`tdmer.objective.TDMERLoss` from what this returns.

    Args:
        dims: Feature width of every modality by name, two or more, in any order.
        num_classes: Width ``k`` of the logits.
        width: Common width ``d``, a multiple of ``heads``.
        heads: Heads of the cross-modal attention.
        layers: Cross-modal blocks per modality; 0 leaves the private features as they are.
        kernel_size: Steps under the convolution, one for all modalities or by name.
        dropout: Dropout in the cross-modal blocks, confidence nets and classifier, in [0, 1).
        input_dropout: Dropout of input features, one for all modalities or by name.
        activation: Bounded end of the encoders: ``"sigmoid"`` (features in [0, 1]) or ``"tanh"``
            ([-1, 1]; then give :class:`~tdmer.objective.TDMERLoss` ``span=2``).
        positions: Whether the cross-modal attention sees positions.
        fusion: ``"tcp"``, or ``"mean"`` for the plain mean of the branches.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or a modality name cannot name a submodule.

    Source:
        Xu et al., "TDMER: A task-driven method for multimodal emotion recognition", ICASSP 2025.

    Example:
        >>> model = TDMER({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> inputs = {"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)}
        >>> out = model(inputs)
        >>> out.logits.shape
        torch.Size([2, 7])
        >>> out.weights["video"]
        tensor([0., 0.], grad_fn=<MaskedFillBackward0>)
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 1,
        kernel_size: int | Mapping[str, int] = 5,
        dropout: float = 0.5,
        input_dropout: float | Mapping[str, float] = 0.6,
        activation: str = "sigmoid",
        positions: bool = True,
        fusion: str = "tcp",
    ) -> None:
        super().__init__()
        check_names("dims", list(dims), least=2)
        if COMMON in dims:
            raise ValueError(f"dims must not name a modality {COMMON!r}, the name of a branch")
        check_count("num_classes", num_classes, least=2)
        check_count("layers", layers, least=0)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("fusion", fusion, ("tcp", "mean"))
        names = list(dims)
        kernels = per_modality("kernel_size", kernel_size, names)
        drops = per_modality("input_dropout", input_dropout, names)

        self.dims = dict(dims)
        self.modalities = tuple(names)
        self.normalizations = nn.ModuleDict({m: InputNormalization(dims[m]) for m in names})
        self.temporal = nn.ModuleDict(
            {
                m: TemporalConv(dims[m], width, kernel_size=kernels[m], dropout=drops[m])
                for m in names
            }
        )
        self.decoupler = Decoupler(names, width, activation=ACTIVATIONS[activation])
        self.cross_modal = nn.ModuleDict(
            {
                m: CrossModalEncoder(
                    [p for p in names if p != m],
                    width,
                    heads,
                    layers=layers,
                    dropout=dropout,
                    positions=positions,
                )
                for m in names
            }
        )
        branches = [COMMON, *names]
        self.fusion: TCPFusion | MeanFusion = (
            TCPFusion(branches, width, num_classes, dropout=dropout)
            if fusion == "tcp"
            else MeanFusion(branches, width, num_classes)
        )
        self.common_edges = EdgeWeights(width, num_classes)
        self.enhanced_edges = EdgeWeights(width, num_classes)
        self.classifier = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes)
        )

    def fit_normalization(self, batches: Iterable[Sequence[Any]]) -> dict[str, int]:
        """Fit the normalisation of every modality to a training set, in one pass per modality.

        Args:
            batches: Tuples that begin with ``inputs, masks`` as :meth:`forward` takes them, such
                as :class:`tdmer.data.Batch`. It is gone through once per modality: a list or a
                loader, not an iterator that can be used once.

        Returns:
            Per modality, the number of real entries that were NaN or infinite; they, and such
            entries in later inputs, are replaced by the mean.
        """
        if isinstance(batches, Iterator):
            raise TypeError("batches must be a list or a loader, got an iterator, usable only once")
        return {
            m: cast(InputNormalization, self.normalizations[m]).fit(
                (inputs[m], masks.get(m)) for inputs, masks, *_ in batches if m in inputs
            )
            for m in self.modalities
        }

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b _ _"]],
        masks: Mapping[str, Bool[Tensor, "b _"] | None] | None = None,
    ) -> TDMEROutput:
        """Predict.

        Args:
            inputs: Raw feature sequences ``(b, t_m, f_m)`` by modality, padded to one length per
                modality. A modality left out is missing for the whole batch.
            masks: True where a step is real, ``(b, t_m)``; None or a missing entry: every step is
                real. A row without a real step: the modality is missing for that sample.

        Returns:
            The prediction with everything the losses and pictures need.

        Raises:
            TypeError: Inputs are not floating point, or masks are not bool.
            ValueError: Names, widths or batch sizes do not fit.
        """
        # Masks are None where every step is real, so that nothing is spent on pads.
        inputs, masks = self._complete(inputs, {} if masks is None else masks)
        features = {}
        for m in self.modalities:
            normalized = self.normalizations[m](inputs[m], masks[m])
            features[m] = self.temporal[m](normalized, masks[m])
        common, private, reconstructed = self.decoupler(features, masks)

        enhanced = {}
        for m in self.modalities:
            sources = {p: private[p] for p in self.modalities if p != m}
            enhanced[m] = self.cross_modal[m](private[m], sources, masks[m], masks)

        full_masks = {
            m: inputs[m].new_ones(inputs[m].shape[:2], dtype=torch.bool) if mask is None else mask
            for m, mask in masks.items()
        }
        present = torch.stack([full_masks[m].any(dim=1) for m in self.modalities], dim=1)
        common_pooled, enhanced_pooled = (
            torch.stack([masked_mean(parts[m], masks[m]) for m in self.modalities], dim=1)
            for parts in (common, enhanced)
        )
        shares = present / present.sum(dim=1, keepdim=True).clamp(min=1)
        branches = {COMMON: (shares.unsqueeze(-1) * common_pooled).sum(dim=1)}
        branches |= dict(zip(self.modalities, enhanced_pooled.unbind(1), strict=True))
        has = {COMMON: present.any(dim=1)} | dict(
            zip(self.modalities, present.unbind(1), strict=True)
        )
        fused, branch_logits, weights = self.fusion(branches, has)

        common_logits = self.fusion.heads[COMMON](common_pooled)
        enhanced_logits = torch.stack([branch_logits[m] for m in self.modalities], dim=1)
        return TDMEROutput(
            logits=self.classifier(fused),
            fused=fused,
            weights=weights,
            branch_logits=branch_logits,
            masks=full_masks,
            present=present,
            features=features,
            common=common,
            private=private,
            reconstructed=reconstructed,
            enhanced=enhanced,
            common_pooled=common_pooled,
            enhanced_pooled=enhanced_pooled,
            common_logits=common_logits,
            enhanced_logits=enhanced_logits,
            common_edges=self.common_edges(common_pooled, common_logits, present),
            enhanced_edges=self.enhanced_edges(enhanced_pooled, enhanced_logits, present),
        )

    def _complete(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        # Give every modality an input, and a mask unless all is real: a pad where it is left out.
        for name, mapping in (("inputs", inputs), ("masks", masks)):
            unknown = [m for m in mapping if m not in self.modalities]
            if unknown:
                raise ValueError(f"{name} must be of {list(self.modalities)}, got {unknown}")
        if not inputs:
            raise ValueError(f"inputs must hold one of {list(self.modalities)}, got none")
        for m, x in inputs.items():
            check_features(f"inputs[{m!r}]", x, ndim=3, width=self.dims[m])
            check_mask(f"masks[{m!r}]", masks.get(m), x.shape[:2])
        first = next(iter(inputs.values()))
        sizes = {m: x.shape[0] for m, x in inputs.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"inputs must have one batch size, got {sizes}")
        full: dict[str, Tensor] = {}
        needed: dict[str, Tensor | None] = {}
        for m in self.modalities:
            given, mask = inputs.get(m), masks.get(m)
            if given is None or given.shape[1] == 0:
                given = first.new_zeros(len(first), 1, self.dims[m])
                mask = given.new_zeros(given.shape[:2], dtype=torch.bool)
            full[m], needed[m] = given, unless_full(mask)
        return full, needed
