"""The whole network: from feature sequences of several modalities to a prediction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from tdmer._checks import (
    check_choice,
    check_count,
    check_names,
    check_real,
    per_modality,
)
from tdmer.fusion.mean import MeanFusion
from tdmer.fusion.tcp import Confidence, TCPFusion
from tdmer.inputs import Inputs
from tdmer.layers.cross_attention import CrossModalEncoder
from tdmer.layers.decoupling import Decoupler
from tdmer.layers.edges import EdgeWeights
from tdmer.layers.temporal import TemporalConv
from tdmer.masks import masked_mean
from tdmer.pretrained import Pretrained

COMMON = "common"
# The bounded ends of an encoder, and the length of the interval that holds its features.
ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "sigmoid": (nn.Sigmoid, 1.0),
    "tanh": (nn.Tanh, 2.0),
}
FUSIONS = ("tcp", "mean")


class CommonFeatures(NamedTuple):
    """Modality-invariant features; ``m`` counts the modalities in order."""

    sequences: dict[str, Tensor]
    """``C_m``, ``(b, t_m, d)`` by modality."""
    pooled: Tensor
    """Masked means of ``C_m``, ``(b, m, d)``."""
    logits: Tensor
    """Logits of each ``C_m`` by the head that they share, ``(b, m, k)``."""
    edges: Tensor
    """How strongly ``C_q`` learns from ``C_p`` at ``[b, p, q]``, ``(b, m, m)``."""
    span: float
    """Length of the interval that holds the features."""


class PrivateFeatures(NamedTuple):
    """Modality-specific features before cross-modal attention; ``m`` counts the modalities.

    What a modality contributes by itself shows here: after the attention each holds something of
    all the others.
    """

    sequences: dict[str, Tensor]
    """``P_m``, ``(b, t_m, d)`` by modality."""
    pooled: Tensor
    """Masked means of ``P_m``, ``(b, m, d)``."""
    logits: Tensor
    """Logits of each ``P_m`` alone, ``(b, m, k)``."""
    confidence: Tensor
    """Estimated true class probability of each ``P_m`` alone, ``(b, m)``; 0 where missing."""


class EnhancedFeatures(NamedTuple):
    """Modality-specific features after cross-modal attention; ``m`` counts the modalities."""

    sequences: dict[str, Tensor]
    """``P_m^e``, ``(b, t_m, d)`` by modality."""
    pooled: Tensor
    """Masked means of ``P_m^e``, ``(b, m, d)``; their logits are those of the branches."""
    edges: Tensor
    """How strongly ``P_q^e`` learns from ``P_p^e`` at ``[b, p, q]``, ``(b, m, m)``."""


class TDMEROutput(NamedTuple):
    """What :class:`TDMER` returns. Sequences are 0 in padded steps."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    fused: Tensor
    """``h``, the fused feature, ``(b, d)``."""
    weights: dict[str, Tensor]
    """``w``, fusion weight of each branch (``"common"`` and the modalities), ``(b,)``."""
    branches: dict[str, Tensor]
    """Pooled features of each branch, layer-normalised, which are fused, ``(b, d)``."""
    branch_logits: dict[str, Tensor]
    """Logits of each branch alone, ``(b, k)``."""
    masks: dict[str, Tensor]
    """True where a step is real, ``(b, t_m)`` by modality."""
    present: Tensor
    """True where a sample has the modality, ``(b, m)``, in order."""
    features: dict[str, Tensor]
    """``X_m``, temporal features, ``(b, t_m, d)`` by modality."""
    common: CommonFeatures
    """``C_m``, with what Eqs. 3, 7 and 8 take of it."""
    private: PrivateFeatures
    """``P_m``, with what each modality says by itself."""
    reconstructed: dict[str, Tensor]
    """``D_m``, reconstruction of ``X_m``, ``(b, t_m, d)`` by modality."""
    enhanced: EnhancedFeatures
    """``P_m^e``, with what Eqs. 7 and 8 take of it."""


def _layer_norm(x: Tensor) -> Tensor:
    """Bring every vector to mean 0 and variance 1; a constant one to 0."""
    return F.layer_norm(x, x.shape[-1:])


def _evidence(logits: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Average the logits of the branches by their weights; both are held fixed."""
    names = sorted(logits)
    shares = torch.stack([weights[name] for name in names]).detach()
    shares = shares / shares.sum(dim=0).clamp(min=torch.finfo(shares.dtype).tiny)
    return (shares.unsqueeze(2) * torch.stack([logits[name] for name in names]).detach()).sum(dim=0)


class TDMER(Pretrained):
    """Task-driven multimodal emotion recognition.

    Inputs are normalised, brought to one width by a convolution per modality, split into common
    and private features (Eq. 1), the private ones are enhanced by cross-modal attention, and the
    pooled parts are fused with weights that estimate their true class probability (Eqs. 7-13).
    Pooled parts are layer-normalised, without weights, before any head. The logits are the mean of
    two: the classifier's of the fused feature, and the branches' own, weighed as the branches are.
    The losses are computed by :class:`tdmer.objective.TDMERLoss` from what this returns. The parts
    are plain attributes, and weights belong to names: the order of ``dims`` changes no prediction.

    Args:
        dims: Feature width of every modality by name, in any order. One alone has nothing to learn
            from another, and serves as a baseline.
        num_classes: Width ``k`` of the logits: ``task.num_classes`` of a :mod:`tdmer.tasks` task.
        width: Common width ``d``, a multiple of ``heads``.
        heads: Heads of the cross-modal attention.
        layers: Cross-modal blocks per modality; 0 leaves the private features as they are.
        kernel_size: Steps under the convolution, one for all modalities or by name. Modalities that
            have but one step, such as a vector for a whole clip, want 1: of a longer kernel all
            weights but those of one step see nothing but pads.
        dropout: Dropout in the cross-modal blocks, confidence nets and classifier, in [0, 1).
        input_dropout: Dropout of input features, one for all modalities or by name. 0.5 is for
            hundreds of features per step; of few that all matter, take 0.1 to 0.3.
        feature_dropout: Dropout of temporal features ``X_m``; both drop a feature from all steps.
        activation: Bounded end of the common encoder: ``"sigmoid"`` (features in [0, 1]) or
            ``"tanh"`` ([-1, 1]).
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
        tensor([0., 0.], grad_fn=<UnbindBackward0>)
    """

    options: dict[str, Any]
    dims: dict[str, int]
    modalities: tuple[str, ...]
    span: float
    normalizations: Inputs
    temporal: nn.ModuleDict
    decoupler: nn.Module
    attention: nn.ModuleDict
    common_edges: nn.Module
    enhanced_edges: nn.Module
    private_classifiers: nn.ModuleDict
    classifiers: nn.ModuleDict
    private_confidence: nn.Module
    fusion: nn.Module
    classifier: nn.Module

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
        input_dropout: float | Mapping[str, float] = 0.5,
        feature_dropout: float = 0.5,
        activation: str = "tanh",
        positions: bool = True,
        fusion: str = "tcp",
    ) -> None:
        super().__init__()
        check_names("dims", list(dims))
        if COMMON in dims:
            raise ValueError(f"dims must not name a modality {COMMON!r}, the name of a branch")
        check_count("num_classes", num_classes, least=2)
        check_count("layers", layers, least=0)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("fusion", fusion, FUSIONS)
        kernels = per_modality("kernel_size", kernel_size, list(dims))
        drops = per_modality("input_dropout", input_dropout, list(dims))
        for m, rate in drops.items():
            check_real(f"input_dropout of {m!r}", rate, below=1.0)
        check_real("feature_dropout", feature_dropout, below=1.0)

        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "heads": heads,
            "layers": layers,
            "kernel_size": kernel_size,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "feature_dropout": feature_dropout,
            "activation": activation,
            "positions": positions,
            "fusion": fusion,
        }
        self.dims = dict(dims)
        self.modalities = tuple(dims)
        # Made, run and summed in the order of the names: the caller's would show in rounding.
        self._names = names = tuple(sorted(dims))
        self._places = [names.index(m) for m in dims]
        branches = [COMMON, *names]
        bounded, self.span = ACTIVATIONS[activation]
        self.normalizations = Inputs(dims)
        self.temporal = nn.ModuleDict(
            {
                m: TemporalConv(
                    dims[m],
                    width,
                    kernel_size=kernels[m],
                    dropout=drops[m],
                    output_dropout=feature_dropout,
                )
                for m in names
            }
        )
        self.decoupler = Decoupler(names, width, activation=bounded)
        self.attention = nn.ModuleDict(
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
                if len(names) > 1
            }
        )
        self.common_edges = EdgeWeights(width, num_classes)
        self.enhanced_edges = EdgeWeights(width, num_classes)
        self.private_classifiers, self.classifiers = (
            nn.ModuleDict({name: nn.Linear(width, num_classes) for name in heads})
            for heads in (names, branches)
        )
        self.private_confidence = Confidence(len(names), width, dropout=dropout)
        self.fusion = (
            TCPFusion(branches, width, dropout=dropout)
            if fusion == "tcp"
            else MeanFusion(branches, width)
        )
        self.classifier = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes)
        )

    def fit_normalization(self, batches: Iterable[Any] | Dataset[Any]) -> dict[str, int]:
        """Fit the normalisation to a training set: ``normalizations`` of the model does it.

        Args:
            batches: As :meth:`tdmer.inputs.Inputs.fit` takes them, such as a data set of
                :mod:`tdmer.data`.

        Returns:
            Per modality, the number of real entries that were NaN or infinite.

        Raises:
            TypeError: As :meth:`tdmer.inputs.Inputs.fit`.
            ValueError: Likewise.
        """
        return self.normalizations.fit(batches)

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> TDMEROutput:
        """Predict.

        Args:
            inputs: Raw feature sequences ``(b, t_m, f_m)`` by modality, padded to one length per
                modality, or vectors ``(b, f_m)``, which are sequences of one step. A modality left
                out is missing for the whole batch.
            masks: True where a step is real, ``(b, t_m)``, and ``(b,)`` or ``(b, 1)`` of vectors;
                None or a missing entry: every step is real. A row without a real step: the modality
                is missing for that sample.
            *rest: What else a :class:`~tdmer.data.Batch` holds, labels and names, so that
                ``model(*batch)`` can be written; no prediction depends on it.

        Returns:
            The prediction with everything the losses and pictures need.

        Raises:
            TypeError: Inputs are not floating point, or masks are not bool.
            ValueError: Names, widths or batch sizes do not fit.
        """
        # Masks are None where every step is real, so that nothing is spent on pads.
        sequences, masks, has = self.normalizations(inputs, masks)
        features = {m: temporal(sequences[m], masks[m]) for m, temporal in self.temporal.items()}
        common, private, reconstructed = self.decoupler(features, masks)
        enhanced = dict(private)
        for m, attention in self.attention.items():
            sources = {p: x for p, x in private.items() if p != m}
            enhanced[m] = attention(private[m], sources, masks[m], masks)

        real = {
            m: torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            for (m, x), mask in zip(features.items(), masks.values(), strict=True)
        }
        here = torch.stack(list(has.values()))
        pooled = torch.stack(
            [
                masked_mean(x, masks[m])
                for part in (common, private, enhanced)
                for m, x in part.items()
            ]
        )
        # What is missing is pooled to 0: the sum is over the present.
        count = here.sum(dim=0).clamp(min=1)
        mean = pooled[: len(here)].sum(dim=0) / count.unsqueeze(1)
        names = self._names
        heads = _layer_norm(torch.cat([pooled, mean.unsqueeze(0)]))
        common_heads, private_heads, enhanced_heads, mean_head = heads.split([len(here)] * 3 + [1])
        branches = {COMMON: mean_head[0], **dict(zip(names, enhanced_heads, strict=True))}
        branch_logits = {name: self.classifiers[name](x) for name, x in branches.items()}
        fused, weights = self.fusion(branches, branch_logits, {COMMON: here.any(dim=0), **has})

        # Read only: trained by these heads, private features would take in what is shared.
        alone = private_heads.detach()
        private_logits = torch.stack(
            [self.private_classifiers[m](x) for m, x in zip(names, alone, strict=True)]
        )
        confidence = self.private_confidence(alone, private_logits).masked_fill(~here, 0.0)

        present, common_stack = self._stacked(here), self._stacked(common_heads)
        common_logits = self.classifiers[COMMON](common_stack)
        enhanced_logits = self._stacked([branch_logits[m] for m in names])
        common_pooled, private_pooled, enhanced_pooled = pooled.split(len(here))
        return TDMEROutput(
            logits=(self.classifier(fused) + _evidence(branch_logits, weights)) / 2,
            fused=fused,
            weights={name: weights[name] for name in (COMMON, *self.modalities)},
            branches={name: branches[name] for name in (COMMON, *self.modalities)},
            branch_logits={name: branch_logits[name] for name in (COMMON, *self.modalities)},
            masks=self._ordered(real),
            present=present,
            features=self._ordered(features),
            common=CommonFeatures(
                sequences=self._ordered(common),
                pooled=self._stacked(common_pooled),
                logits=common_logits,
                edges=self.common_edges(common_stack, common_logits, present),
                span=self.span,
            ),
            private=PrivateFeatures(
                sequences=self._ordered(private),
                pooled=self._stacked(private_pooled),
                logits=self._stacked(private_logits),
                confidence=self._stacked(confidence),
            ),
            reconstructed=self._ordered(reconstructed),
            enhanced=EnhancedFeatures(
                sequences=self._ordered(enhanced),
                pooled=self._stacked(enhanced_pooled),
                edges=self.enhanced_edges(self._stacked(enhanced_heads), enhanced_logits, present),
            ),
        )

    def _stacked(self, found: Tensor | Sequence[Tensor]) -> Tensor:
        """Stack what is by name in the caller's order, along the second axis."""
        return torch.stack([found[place] for place in self._places], dim=1)

    def _ordered(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: found[m] for m in self.modalities}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Without this, strict=False would leave the attention of such a file out in silence.
        earlier = (f"{prefix}cross_modal.", f"{prefix}fusion.heads.")
        others = f"{prefix}private_classifiers."
        if any(name.startswith(earlier) for name in state_dict) or (
            f"{prefix}classifiers.{COMMON}.weight" in state_dict
            and not any(name.startswith(others) for name in state_dict)
        ):
            raise ValueError(
                "state_dict must be of this version of TDMER, got one of an earlier version, "
                "which had other parts: train the model anew"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
