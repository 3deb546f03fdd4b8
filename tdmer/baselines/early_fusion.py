"""Features joined before any net has seen them."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count
from tdmer.baselines.objective import Plain
from tdmer.inputs import Inputs
from tdmer.masks import masked_mean
from tdmer.pretrained import Pretrained


class EarlyFusion(Pretrained):
    """Means of the normalised features over time, side by side, through two layers.

    Sequences of different lengths have no steps in common to be joined at: what is joined are their
    means. A missing modality is 0, the mean of the training set.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width of the layers.
        dropout: Dropout between the two layers, in [0, 1).
        input_dropout: Dropout of input features, in [0, 1).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> model = EarlyFusion({"text": 300, "audio": 74}, num_classes=7)
        >>> model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)}).logits.shape
        torch.Size([2, 7])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 64,
        dropout: float = 0.5,
        input_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("width", width)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "dropout": dropout,
            "input_dropout": input_dropout,
        }
        self.modalities = tuple(dims)
        self.normalizations = Inputs(dims)
        self.head = nn.Sequential(
            *(nn.Dropout(input_dropout), nn.Linear(sum(dims.values()), width)),
            *(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes)),
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> Plain:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        means = [masked_mean(x, given.masks[m]) for m, x in given.sequences.items()]
        joined = torch.cat(means, dim=1).to(next(self.head.parameters()).dtype)
        return Plain(self.head(joined), joined)
