"""Low-rank multimodal fusion: the tensor of TFN with weights of low rank."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_count
from tdmer.baselines.objective import Plain
from tdmer.baselines.utterance import utterance_nets
from tdmer.inputs import Inputs
from tdmer.pretrained import Pretrained


class LMF(Pretrained):
    r"""Low-rank multimodal fusion: a linear map of TFN's product that never makes the product.

    Of weights that are a sum of ``r`` outer products, ``h = sum_r w_r prod_m (F_mr [1, x_m])``: the
    cost grows with the number of modalities, not exponentially in it.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width ``d`` of a modality's vector.
        rank: Rank ``r`` of the weights.
        read: Modalities that an LSTM reads; None: ``"text"``, if there is. The others are averaged.
        dropout: Dropout of the features, in [0, 1).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Source:
        Liu et al., "Efficient low-rank multimodal fusion with modality-specific factors", ACL 2018.

    Example:
        >>> import torch
        >>> model = LMF({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)}).logits.shape
        torch.Size([2, 7])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    nets: nn.ModuleDict
    factors: nn.ParameterDict
    weights: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 64,
        rank: int = 3,
        read: Sequence[str] | None = None,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("width", width)
        check_count("rank", rank)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "rank": rank,
            "read": None if read is None else list(read),
            "dropout": dropout,
        }
        self.modalities = tuple(dims)
        self.normalizations = Inputs(dims)
        self.nets = utterance_nets(dims, width, read, dropout=dropout)
        self.factors = nn.ParameterDict(
            {m: nn.Parameter(torch.empty(rank, width + 1, num_classes)) for m in sorted(dims)}
        )
        self.weights = nn.Parameter(torch.empty(1, rank))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        for weight in (*self.factors.values(), self.weights):
            nn.init.xavier_normal_(weight)

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> Plain:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        vectors = {m: net(given.sequences[m], given.masks[m]) for m, net in self.nets.items()}
        product = torch.ones_like(self.bias)
        for m, vector in vectors.items():
            product = product * (F.pad(vector, (1, 0), value=1.0) @ self.factors[m])
        logits = torch.einsum("r,rbk->bk", self.weights[0], product) + self.bias
        return Plain(logits, torch.cat(list(vectors.values()), dim=1))
