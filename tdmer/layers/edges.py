"""Direction and strength of cross-modal learning, decided by the logits (Eq. 7)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_features, check_mask


def ordered_pairs(present: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m m"]:
    """Mark the ordered pairs of different modalities that a sample has.

    Args:
        present: True where sample ``b`` has modality ``m``.

    Returns:
        ``[b, p, q]`` is True where ``p`` and ``q`` differ and are both present.

    Example:
        >>> ordered_pairs(torch.tensor([[True, True, False]])).int()
        tensor([[[0, 1, 0],
                 [1, 0, 0],
                 [0, 0, 0]]], dtype=torch.int32)
    """
    same = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return present.unsqueeze(2) & present.unsqueeze(1) & ~same


class EdgeWeights(nn.Module):
    r"""Weights of the edges between modalities (Eq. 7).

    ``w[p, q] = softmax(F2([[F1(h_p), h_p], [F1(h_q), h_q]]))``: how strongly modality ``q`` learns
    from modality ``p``, normalised over all ordered pairs of a sample. F2 is one linear layer, so
    it is held as its two halves, one for the source ``p`` and one for the target ``q``; its bias
    would cancel in the softmax and is left out.

    Args:
        width: Width ``d`` of the pooled features ``h``.
        num_classes: Width ``k`` of the logits ``F1(h)``.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Section II.C.

    Example:
        >>> edges = EdgeWeights(8, 3)
        >>> weights = edges(torch.zeros(2, 3, 8), torch.zeros(2, 3, 3))
        >>> weights[0, 0]
        tensor([0.0000, 0.1667, 0.1667], grad_fn=<SelectBackward0>)
    """

    source: nn.Linear
    target: nn.Linear

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        check_count("width", width)
        check_count("num_classes", num_classes)
        self.source = nn.Linear(num_classes + width, 1, bias=False)
        self.target = nn.Linear(num_classes + width, 1, bias=False)

    def forward(
        self,
        pooled: Float[Tensor, "b m d"],
        logits: Float[Tensor, "b m k"],
        present: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m m"]:
        """Weigh every ordered pair of modalities.

        Args:
            pooled: One vector per modality, ``h``.
            logits: Their logits, ``F1(h)``.
            present: True where a sample has the modality; None: everywhere.

        Returns:
            ``[b, p, q]``, the weight with which ``q`` learns from ``p``, in float32 at least. It is
            0 on the diagonal and for absent modalities, and sums to 1 over the pairs of a sample
            that has at least two modalities, to 0 otherwise.
        """
        check_features("pooled", pooled, ndim=3)
        check_features("logits", logits, ndim=3)
        check_mask("present", present, pooled.shape[:2])
        if present is None:
            present = torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device)
        both = torch.cat([logits, pooled], dim=-1).masked_fill(~present.unsqueeze(-1), 0.0)
        scores = self.source(both) + self.target(both).transpose(1, 2)
        pairs = ordered_pairs(present).flatten(1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).flatten(1)
        # The lowest finite number, not -inf: a row without any pair must stay finite.
        scores = scores.masked_fill(~pairs, torch.finfo(scores.dtype).min)
        weights: Tensor = scores.softmax(dim=-1).masked_fill(~pairs, 0.0)
        return weights.view(*present.shape, present.shape[1])
