"""Disentangled features, told apart by a discriminator of modalities."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_count
from tdmer.baselines.objective import Auxiliary
from tdmer.baselines.utterance import temporal_nets
from tdmer.inputs import Inputs
from tdmer.layers import CrossModalBlock
from tdmer.losses import orthogonal_loss, pairwise_cmd_loss
from tdmer.masks import masked_mean, zero_pads
from tdmer.objective import Task
from tdmer.pretrained import Pretrained


class FDMEROutput(NamedTuple):
    """What :class:`FDMER` returns; ``m`` counts the modalities in the order of their names."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    common: Tensor
    """Modality-invariant features in [-1, 1], ``(b, m, d)``."""
    private: Tensor
    """Modality-specific features in [-1, 1], ``(b, m, d)``."""
    common_modality: Tensor
    """What the discriminator says of each common feature, ``(b, m, m)``, by a reversed gradient."""
    private_modality: Tensor
    """What it says of each private feature, ``(b, m, m)``."""
    weights: Tensor
    """Weight of each common and then each private feature in the fusion, ``(b, 2m)``."""
    present: Tensor
    """True where a sample has the modality, ``(b, m)``."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """Return ``adversarial``, ``consistency`` (CMD) and ``disparity`` (orthogonality)."""
        here = self.present.unbind(1)
        common, private = self.common.unbind(1), self.private.unbind(1)
        pairs = combinations(range(len(here)), 2)
        apart = [orthogonal_loss(self.common, self.private, mask=self.present)]
        apart += [orthogonal_loss(private[p], private[q], mask=here[p] & here[q]) for p, q in pairs]
        truth = torch.arange(len(here), device=labels.device).expand(self.present.shape)
        told = [
            F.cross_entropy(logits.transpose(1, 2), truth, reduction="none")
            for logits in (self.common_modality, self.private_modality)
        ]
        errors = torch.stack(told).sum(dim=0).masked_fill(~self.present, 0.0)
        return {
            "adversarial": Auxiliary(0.1, errors.sum() / self.present.sum().clamp(min=1)),
            "consistency": Auxiliary(0.1, pairwise_cmd_loss(common, masks=here, span=2.0)),
            "disparity": Auxiliary(0.1, torch.stack(apart).sum()),
        }


class FDMER(Pretrained):
    """Feature-disentangled emotion recognition, as far as its abstract describes it.

    **No code of it was published, and this was built from the abstract**: a common encoder and
    private ones; a discriminator that tells the modality of a feature, against which the common
    encoder works and with which the private ones do; losses of consistency and of disparity; and an
    attention between the modalities that learns adaptive weights. The forms of these losses, all
    sizes and all weights are ours: the central moment discrepancy of the common features, the
    cosines of :func:`~tdmer.losses.orthogonal_loss`, and 0.1 for each.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width ``d`` of all features, a multiple of ``heads``.
        heads: Heads of the attention.
        kernel_size: Steps under the first convolution.
        dropout: Dropout of the attention, the discriminator and the head, in [0, 1).
        input_dropout: Dropout of input features, in [0, 1).
        feature_dropout: Dropout of temporal features; both drop a feature from all steps.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Source:
        Yang et al., "Disentangled representation learning for multimodal emotion recognition", ACM
        Multimedia 2022, its abstract.

    Example:
        >>> import torch
        >>> model = FDMER({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> output = model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)})
        >>> output.weights.shape
        torch.Size([2, 6])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    temporal: nn.ModuleDict
    common: nn.Sequential
    private: nn.ModuleDict
    discriminator: nn.Sequential
    attention: CrossModalBlock
    score: nn.Linear
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 64,
        heads: int = 4,
        kernel_size: int = 5,
        dropout: float = 0.3,
        input_dropout: float = 0.3,
        feature_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "heads": heads,
            "kernel_size": kernel_size,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "feature_dropout": feature_dropout,
        }
        self.modalities = tuple(dims)
        self.normalizations = Inputs(dims)
        self.temporal = temporal_nets(
            dims,
            width,
            kernel_size=kernel_size,
            input_dropout=input_dropout,
            feature_dropout=feature_dropout,
        )
        self.common = _encoder(width)
        self.private = nn.ModuleDict({m: _encoder(width) for m in sorted(dims)})
        self.discriminator = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, len(dims))
        )
        self.attention = CrossModalBlock(["all"], width, heads, dropout=dropout, positions=False)
        self.score = nn.Linear(width, 1)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes)
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> FDMEROutput:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        x, steps = given.sequences, given.masks
        pooled = [masked_mean(net(x[m], steps[m]), steps[m]) for m, net in self.temporal.items()]
        present = torch.stack(list(given.present.values()), dim=1)
        common = zero_pads(self.common(torch.stack(pooled, dim=1)), present)
        of_each = zip(self.private.values(), pooled, strict=True)
        private = zero_pads(torch.stack([net(p) for net, p in of_each], dim=1), present)

        features, real = torch.cat([common, private], dim=1), torch.cat([present, present], dim=1)
        normed = self.attention.target_norm(features)
        mixed = self.attention(features, {"all": normed}, real, {"all": real})
        # Finite, for a sample that has nothing at all.
        scores = self.score(mixed).squeeze(2).masked_fill(~real, -1e4)
        weights = scores.softmax(dim=1).masked_fill(~real, 0.0)
        fused = (weights.unsqueeze(2) * mixed).sum(dim=1)
        reversed_ = 2 * common.detach() - common
        return FDMEROutput(
            logits=self.head(fused),
            common=common,
            private=private,
            common_modality=self.discriminator(reversed_),
            private_modality=self.discriminator(private),
            weights=weights,
            present=present,
        )


def _encoder(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh())
