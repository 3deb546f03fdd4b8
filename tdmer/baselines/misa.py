"""Modality-invariant and modality-specific codes of whole utterances."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count
from tdmer.baselines.objective import Auxiliary
from tdmer.inputs import Inputs
from tdmer.layers import Recurrent
from tdmer.losses import pairwise_cmd_loss
from tdmer.masks import masked_mean, zero_pads
from tdmer.objective import Task
from tdmer.pretrained import Pretrained


class MISAOutput(NamedTuple):
    """What :class:`MISA` returns; ``m`` counts the modalities in the order of their names."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    utterances: Tensor
    """Every modality as one vector, ``(b, m, d)``."""
    shared: Tensor
    """Modality-invariant codes in [0, 1], ``(b, m, d)``."""
    private: Tensor
    """Modality-specific codes in [0, 1], ``(b, m, d)``."""
    reconstructed: Tensor
    """The utterances, rebuilt from the sums of the codes, ``(b, m, d)``."""
    present: Tensor
    """True where a sample has the modality, ``(b, m)``."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """Return ``similarity`` (CMD), ``difference`` and ``reconstruction``."""
        here = self.present.unbind(1)
        shared, private = self.shared.unbind(1), self.private.unbind(1)
        pairs = list(combinations(range(len(here)), 2))
        alike = pairwise_cmd_loss(shared, masks=here) / max(len(pairs), 1)
        apart = [difference_loss(*both) for both in zip(shared, private, here, strict=True)]
        apart += [difference_loss(private[p], private[q], here[p] & here[q]) for p, q in pairs]
        squares = (self.reconstructed - self.utterances).square().mean(dim=2)
        rebuilt = squares.masked_fill(~self.present, 0.0).sum() / self.present.sum().clamp(min=1)
        return {
            "similarity": Auxiliary(1.0, alike),
            "difference": Auxiliary(0.3, torch.stack(apart).sum()),
            "reconstruction": Auxiliary(1.0, rebuilt),
        }


def difference_loss(
    x: Float[Tensor, "b d"], y: Float[Tensor, "b d"], mask: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Mean square of the products of all pairs of features, summed over the batch.

    The batch is centred and every row divided by its norm, which is held fixed.

    Args:
        x: Codes.
        y: Codes of the same samples.
        mask: True where a sample has both.

    Source:
        Hazarika et al., "MISA", ACM Multimedia 2020, Section 3.5.2.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> difference_loss(x, x.flip(1), torch.tensor([True, True])).round(decimals=3)
        tensor(1.)
    """
    x, y = (_unit_rows(codes, mask) for codes in (x, y))
    return (x.transpose(0, 1) @ y).square().mean()


def _unit_rows(x: Tensor, mask: Tensor) -> Tensor:
    x = zero_pads(x, mask)
    x = zero_pads(x - x.sum(dim=0) / mask.sum().clamp(min=1), mask)
    norms: Tensor = torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    return x / (norms + 1e-6)


class _Utterance(nn.Module):
    """One vector of a sequence: the mean, or the last states of two bidirectional LSTMs."""

    def __init__(self, features: int, width: int, *, read: bool) -> None:
        super().__init__()
        self.first = Recurrent(features, features, bidirectional=True) if read else None
        self.norm = nn.LayerNorm(2 * features) if read else None
        self.second = Recurrent(2 * features, features, bidirectional=True) if read else None
        inner = 4 * features if read else features
        self.project = nn.Sequential(nn.Linear(inner, width), nn.ReLU(), nn.LayerNorm(width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.first is None or self.norm is None or self.second is None:
            found = masked_mean(x, mask).to(next(self.project.parameters()).dtype)
        else:
            sequence, first = self.first(x, mask)
            found = torch.cat([first, self.second(self.norm(sequence), mask).last], dim=1)
        projected: Tensor = self.project(found)
        return projected


class MISA(Pretrained):
    """MISA: what is shared and what is private of each modality, and one attention over all codes.

    Each modality becomes a vector, from which an encoder of all and one of its own make codes. The
    shared codes are to have one distribution, the private ones to be uncorrelated with all others,
    and both together to hold the vector. One transformer layer goes over the ``2 m`` codes.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width ``d`` of the codes, even.
        read: Modalities that LSTMs read; None: all but ``"text"``, whose states are averaged, as
            those of BERT are in the paper.
        dropout: Dropout of the head, in [0, 1).
        input_dropout: Dropout of input features, from all steps, in [0, 1).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or ``read`` names no modality.

    Source:
        Hazarika et al., "MISA: Modality-invariant and -specific representations for multimodal
        sentiment analysis", ACM Multimedia 2020.

    Example:
        >>> import torch
        >>> model = MISA({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> output = model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)})
        >>> output.shared.shape
        torch.Size([2, 3, 128])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    input_dropout: nn.Dropout1d
    utterances: nn.ModuleDict
    shared: nn.Sequential
    private: nn.ModuleDict
    decoders: nn.ModuleDict
    attention: nn.TransformerEncoderLayer
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 128,
        read: Sequence[str] | None = None,
        dropout: float = 0.2,
        input_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        unknown = [m for m in read or () if m not in dims]
        if unknown:
            raise ValueError(f"read must be of {list(dims)}, got {unknown}")
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "read": None if read is None else list(read),
            "dropout": dropout,
            "input_dropout": input_dropout,
        }
        self.modalities = tuple(dims)
        names = sorted(dims)
        by_lstm = [m for m in names if m != "text"] if read is None else read
        self.normalizations = Inputs(dims)
        self.input_dropout = nn.Dropout1d(input_dropout)
        self.utterances = nn.ModuleDict(
            {m: _Utterance(dims[m], width, read=m in by_lstm) for m in names}
        )
        self.shared = nn.Sequential(nn.Linear(width, width), nn.Sigmoid())
        self.private = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for m in names}
        )
        self.decoders = nn.ModuleDict({m: nn.Linear(width, width) for m in names})
        self.attention = nn.TransformerEncoderLayer(width, 2, batch_first=True)
        codes = 2 * len(names) * width
        self.head = nn.Sequential(
            *(nn.Linear(codes, codes // 2), nn.Dropout(dropout)),
            *(nn.ReLU(), nn.Linear(codes // 2, num_classes)),
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> MISAOutput:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        found: list[Tensor] = []
        for m, net in self.utterances.items():
            x = self.input_dropout(given.sequences[m].transpose(1, 2)).transpose(1, 2)
            found.append(net(x, given.masks[m]))
        utterances = torch.stack(found, dim=1)
        present = torch.stack(list(given.present.values()), dim=1)
        shared = zero_pads(self.shared(utterances), present)
        of_each = zip(self.private.values(), found, strict=True)
        private = zero_pads(torch.stack([net(x) for net, x in of_each], dim=1), present)
        of_each = zip(self.decoders.values(), (shared + private).unbind(1), strict=True)
        reconstructed = torch.stack([net(x) for net, x in of_each], dim=1)
        real = torch.cat([present, present], dim=1)
        # A softmax over no token at all is undefined.
        hidden = ~(real | ~real.any(dim=1, keepdim=True))
        mixed = self.attention(torch.cat([private, shared], dim=1), src_key_padding_mask=hidden)
        logits = self.head(zero_pads(mixed, real).flatten(1))
        return MISAOutput(logits, utterances, shared, private, reconstructed, present)
