"""One modality alone."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_choice, check_count
from tdmer.baselines.objective import Plain
from tdmer.inputs import Inputs
from tdmer.layers import TemporalConv
from tdmer.masks import masked_mean
from tdmer.pretrained import Pretrained


class Unimodal(Pretrained):
    """A convolution over time, the mean of the steps, and two layers, of one modality.

    Args:
        dims: Feature width of every modality by name. All may be given as inputs; one is read.
        num_classes: Width ``k`` of the logits.
        modality: The one that is read; None: the first of ``dims``.
        width: Width of the layers.
        kernel_size: Steps under the convolution.
        dropout: Dropout between the two layers, in [0, 1).
        input_dropout: Dropout of input features, in [0, 1).
        feature_dropout: Dropout of temporal features; both drop a feature from all steps.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or ``modality`` is none of ``dims``.

    Example:
        >>> import torch
        >>> model = Unimodal({"text": 300, "audio": 74}, num_classes=7, modality="audio")
        >>> model({"audio": torch.zeros(2, 20, 74)}).logits.shape
        torch.Size([2, 7])
    """

    normalizations: Inputs
    modalities: tuple[str, ...]
    modality: str
    options: dict[str, Any]
    temporal: TemporalConv
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        modality: str | None = None,
        width: int = 64,
        kernel_size: int = 5,
        dropout: float = 0.5,
        input_dropout: float = 0.3,
        feature_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.normalizations = Inputs(dims)
        self.modalities = tuple(dims)
        self.modality = self.modalities[0] if modality is None else modality
        check_choice("modality", self.modality, dims)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "modality": self.modality,
            "width": width,
            "kernel_size": kernel_size,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "feature_dropout": feature_dropout,
        }
        self.temporal = TemporalConv(
            dims[self.modality],
            width,
            kernel_size=kernel_size,
            dropout=input_dropout,
            output_dropout=feature_dropout,
        )
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes)
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> Plain:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        mask = given.masks[self.modality]
        pooled = masked_mean(self.temporal(given.sequences[self.modality], mask), mask)
        return Plain(self.head(pooled), pooled)
