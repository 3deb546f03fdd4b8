"""Tensor fusion: the outer product of the modalities."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_count
from tdmer.baselines.objective import Plain
from tdmer.baselines.utterance import utterance_nets
from tdmer.inputs import Inputs
from tdmer.pretrained import Pretrained

_MOST = 10**6


class TFN(Pretrained):
    """Tensor fusion network: every product of entries of different modalities is a feature.

    Each modality becomes a vector, to which a 1 is appended, so that the outer product of all holds
    the products of any subset of them. A missing modality is a vector of 0: what is left is the
    product of the others.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width ``d`` of a modality's vector; the product has ``(d + 1)^m`` entries.
        hidden: Width of the two layers after the product.
        read: Modalities that an LSTM reads; None: ``"text"``, if there is. The others are averaged.
        dropout: Dropout of the features, in [0, 1).
        fused_dropout: Dropout of the product, in [0, 1).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or the product would have over 10^6 entries.

    Source:
        Zadeh et al., "Tensor fusion network for multimodal sentiment analysis", EMNLP 2017.

    Example:
        >>> import torch
        >>> model = TFN({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)}).logits.shape
        torch.Size([2, 7])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    nets: nn.ModuleDict
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 32,
        hidden: int = 64,
        read: Sequence[str] | None = None,
        dropout: float = 0.3,
        fused_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("width", width)
        check_count("hidden", hidden)
        entries = (width + 1) ** len(dims)
        if entries > _MOST:
            rule = f"be such that (width + 1) ** {len(dims)} is at most {_MOST}"
            raise ValueError(f"width must {rule}, got {width}")
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "hidden": hidden,
            "read": None if read is None else list(read),
            "dropout": dropout,
            "fused_dropout": fused_dropout,
        }
        self.modalities = tuple(dims)
        self.normalizations = Inputs(dims)
        self.nets = utterance_nets(dims, width, read, dropout=dropout)
        self.head = nn.Sequential(
            nn.Dropout(fused_dropout),
            *(nn.Linear(entries, hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, num_classes),
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> Plain:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        product: Tensor | None = None
        for m, net in self.nets.items():
            vector = F.pad(net(given.sequences[m], given.masks[m]), (1, 0), value=1.0)
            if product is not None:
                vector = (product.unsqueeze(2) * vector.unsqueeze(1)).flatten(1)
            product = vector
        assert product is not None
        return Plain(self.head(product), product)
