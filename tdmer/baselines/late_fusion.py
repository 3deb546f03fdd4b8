"""Predictions of single modalities, averaged."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count
from tdmer.baselines.objective import Auxiliary, supervised_loss
from tdmer.baselines.utterance import temporal_nets
from tdmer.inputs import Inputs
from tdmer.masks import masked_mean
from tdmer.objective import Task
from tdmer.pretrained import Pretrained


class LateFusionOutput(NamedTuple):
    """What :class:`LateFusion` returns."""

    logits: Tensor
    """Mean of the logits of the modalities that a sample has, ``(b, k)``."""
    branch_logits: dict[str, Tensor]
    """Logits of each modality alone, ``(b, k)``."""
    present: dict[str, Tensor]
    """True where a sample has the modality, ``(b,)``."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """Return ``branches``, by which every modality learns to predict alone."""
        found = [
            supervised_loss(task, logits, labels, self.present[m])
            for m, logits in self.branch_logits.items()
        ]
        return {"branches": Auxiliary(0.1, torch.stack(found).sum())}


class LateFusion(Pretrained):
    """The net of :class:`~tdmer.baselines.Unimodal` for each modality; the mean of their logits.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width of the layers.
        kernel_size: Steps under the convolution.
        dropout: Dropout between the two layers, in [0, 1).
        input_dropout: Dropout of input features, in [0, 1).
        feature_dropout: Dropout of temporal features; both drop a feature from all steps.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> model = LateFusion({"text": 300, "audio": 74}, num_classes=7)
        >>> output = model({"text": torch.zeros(2, 9, 300)})
        >>> bool((output.logits == output.branch_logits["text"]).all())
        True
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    temporal: nn.ModuleDict
    heads: nn.ModuleDict

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 64,
        kernel_size: int = 5,
        dropout: float = 0.5,
        input_dropout: float = 0.3,
        feature_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
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
        self.heads = nn.ModuleDict(
            {
                m: nn.Sequential(
                    *(nn.Linear(width, width), nn.ReLU()),
                    *(nn.Dropout(dropout), nn.Linear(width, num_classes)),
                )
                for m in sorted(dims)
            }
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> LateFusionOutput:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        x, steps, present = self.normalizations(inputs, masks)
        logits = {
            m: self.heads[m](masked_mean(temporal(x[m], steps[m]), steps[m]))
            for m, temporal in self.temporal.items()
        }
        here = torch.stack([present[m] for m in logits]).unsqueeze(2)
        each = torch.stack(list(logits.values())).masked_fill(~here, 0.0)
        mean = each.sum(dim=0) / here.sum(dim=0).clamp(min=1)
        return LateFusionOutput(mean, logits, present)
