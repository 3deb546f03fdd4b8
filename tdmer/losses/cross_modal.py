"""Dynamic cross-modal learning between the logits of modalities (Eq. 8)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdmer._checks import check_features, check_mask


def cross_modal_loss(
    logits: Float[Tensor, "b m k"],
    edges: Float[Tensor, "b m m"],
    *,
    present: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, ""]:
    r"""Weighted differences of the logits of all ordered pairs of modalities (Eq. 8).

    ``mean_b sum_{p != q} edges[b, p, q] * ||logits_p.detach() - logits_q||_1``: modality ``q``
    learns from ``p``, which does not move. With the differences fixed the least value puts all
    weight on the pair that differs least, which ends the learning: watch :func:`edge_entropy`.

    Args:
        logits: Logits of every modality, or their probabilities. The difference of logits grows
            with confidence; that of probabilities is at most 2.
        edges: ``[b, p, q]``, the weight with which ``q`` learns from ``p``; see
            :class:`tdmer.layers.EdgeWeights`. The diagonal does not count.
        present: True where a sample has the modality; None: everywhere. What stands elsewhere
            does not matter.

    Returns:
        A scalar, the mean over the batch, to which a sample with fewer than two modalities adds 0;
        at least 0 for non-negative edges. Float32 for lower precision input.

    Raises:
        TypeError: An input is not floating point, or ``present`` is not bool.
        ValueError: The shapes do not fit.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 8; the L1 distance and the fixed source follow Li et
        al., "Decoupled multimodal distilling", CVPR 2023, on which it builds.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])
        >>> edges = torch.tensor([[[0.0, 0.75], [0.25, 0.0]]])
        >>> cross_modal_loss(logits, edges)
        tensor(3.)
    """
    check_features("logits", logits, ndim=3)
    check_features("edges", edges, ndim=3)
    b, m, _ = logits.shape
    if edges.shape != (b, m, m):
        raise ValueError(f"edges must have shape {(b, m, m)}, got {tuple(edges.shape)}")
    check_mask("present", present, (b, m))
    precise = torch.promote_types(torch.promote_types(logits.dtype, edges.dtype), torch.float32)
    logits, edges = logits.to(precise), edges.to(precise)
    if present is not None:
        logits = logits.masked_fill(~present.unsqueeze(-1), 0.0)
        edges = edges.masked_fill(~(present.unsqueeze(2) & present.unsqueeze(1)), 0.0)
    differences = (logits.detach().unsqueeze(2) - logits.unsqueeze(1)).abs().sum(dim=-1)
    return (edges * differences).sum() / max(b, 1)


def edge_entropy(edges: Float[Tensor, "b m m"]) -> Float[Tensor, " b"]:
    """Entropy of the edge weights of every sample, in nats.

    Args:
        edges: Weights, non-negative and summing to 1 over the pairs of a sample, or all 0.

    Returns:
        Values between 0 (one edge has all weight) and ``log(m (m - 1))`` (all edges weigh the
        same); 0 for a sample without edges. Float32 for lower precision input.

    Raises:
        TypeError: ``edges`` is not floating point.
        ValueError: ``edges`` does not have three axes.

    Example:
        >>> edge_entropy(torch.tensor([[[0.0, 0.5], [0.5, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]))
        tensor([0.6931, 0.0000])
    """
    check_features("edges", edges, ndim=3)
    edges = edges.to(torch.promote_types(edges.dtype, torch.float32))
    # The floor keeps the gradient of w log w finite at 0, where its limit is 0.
    surprise = -edges.clamp_min(torch.finfo(edges.dtype).tiny).log()
    return (edges * surprise).sum(dim=(1, 2))
