"""Context: what the other clips of a video say, added to the prediction of each."""

from collections.abc import Hashable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from tdmer._checks import check_features, check_real


def add_context(
    logits: Float[Tensor, "b k"],
    groups: Iterable[Hashable] | Tensor,
    *,
    weight: float = 0.5,
) -> Float[Tensor, "b k"]:
    r"""Add to the logits of every clip the mean of those of the other clips of its group.

    ``logits_i + weight · mean_{j ≠ i, same group} logits_j``. A review praises or pans in most of
    its sentences, so a sentence that could mean either is read by the others. Of probabilities this
    is the product of the clip's own with the geometric mean of the others', raised to ``weight``.
    Nothing is trained and no label is read: it suits logits of any model, each of one clip alone.
    Where every group holds all classes in equal shares there is nothing to gain: choose ``weight``
    on validation data, and it will be 0.

    Args:
        logits: Finite scores before the softmax or the sigmoid, of all clips of every group.
        groups: The group of every clip, such as the video.
        weight: How much the others count together; 0: not at all, 1: as much as the clip itself.

    Returns:
        The logits with their context; those of a clip without others stay.

    Raises:
        TypeError: ``logits`` is not floating point, or ``weight`` not a number.
        ValueError: The shapes do not fit, or ``weight`` is negative.

    Source:
        A logarithmic opinion pool (Genest and Zidek, "Combining probability distributions",
        Statistical Science 1986) of the utterances of a video, which depend on one another (Poria
        et al., "Context-dependent sentiment analysis in user-generated videos", ACL 2017).

    Example:
        >>> logits = torch.tensor([[0.0, 0.5], [0.0, 2.0], [0.0, 4.0], [1.0, 0.0]])
        >>> add_context(logits, ["review 1", "review 1", "review 1", "review 2"], weight=0.5)
        tensor([[0.0000, 2.0000],
                [0.0000, 3.1250],
                [0.0000, 4.6250],
                [1.0000, 0.0000]])
    """
    check_features("logits", logits, ndim=2)
    check_real("weight", weight)
    names = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if len(names) != len(logits):
        raise ValueError(f"groups must be one per row of logits, {len(logits)}, got {len(names)}")
    places: dict[Hashable, int] = {}
    numbers = torch.tensor(
        [places.setdefault(name, len(places)) for name in names],
        dtype=torch.int64,
        device=logits.device,
    )
    others = numbers.bincount(minlength=len(places))[numbers].unsqueeze(1) - 1
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    sums = precise.new_zeros(len(places), precise.shape[1]).index_add(0, numbers, precise)
    context = (sums[numbers] - precise) / others.clamp(min=1)
    return (precise + weight * context).to(logits.dtype)
