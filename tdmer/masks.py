"""Masks, True where a step is real: zeroing, averaging and leaving out the rest.

What stands in a padded step changes nothing, in any function of the package that takes a mask.
This is also the one place where values may decide what is computed.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from tdmer._checks import check_features, check_mask


def zero_pads(x: Float[Tensor, "*n d"], mask: Bool[Tensor, "*n"] | None) -> Float[Tensor, "*n d"]:
    """Set the masked entries to 0, whatever stands in them (NaN and inf included).

    Args:
        x: Features.
        mask: True where an entry is real; None: all are.

    Returns:
        The features with zeros where ``mask`` is False, and no gradient there.

    Raises:
        TypeError: ``x`` is not floating point, or ``mask`` is not bool.
        ValueError: The shapes do not fit.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
        >>> zero_pads(x, torch.tensor([True, False]))
        tensor([[1., 2.],
                [0., 0.]])
    """
    check_features("x", x)
    check_mask("mask", mask, x.shape[:-1])
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)


def masked_mean(
    x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"] | None = None
) -> Float[Tensor, "b d"]:
    """Mean over the real steps of each sequence; 0 where a sequence has none.

    Args:
        x: Sequences, shape ``(b, t, d)``.
        mask: True where a step is real, shape ``(b, t)``; None: all are.

    Returns:
        One vector per sequence, shape ``(b, d)``.

    Raises:
        TypeError: ``x`` is not floating point, or ``mask`` is not bool.
        ValueError: The shapes do not fit.

    Example:
        >>> x = torch.tensor([[[2.0], [4.0], [float("nan")]]])
        >>> masked_mean(x, torch.tensor([[True, True, False]]))
        tensor([[3.]])
    """
    check_features("x", x, ndim=3)
    if mask is None:
        return x.sum(dim=1) / max(x.shape[1], 1)
    steps = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return zero_pads(x, mask).sum(dim=1) / steps


def real_first(
    x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
) -> tuple[Float[Tensor, "b t d"], Int64[Tensor, "b t 1"]]:
    """Bring the real steps of every sequence to its front, in their order; the rest is 0.

    Args:
        x: Sequences.
        mask: True where a step is real.

    Returns:
        The sequences, and the place from which each step came; ``scatter`` along the second axis
        brings steps back.

    Raises:
        TypeError: ``x`` is not floating point, or ``mask`` is not bool.
        ValueError: The shapes do not fit.

    Example:
        >>> x = torch.tensor([[[float("nan")], [1.0], [2.0]]])
        >>> front, places = real_first(x, torch.tensor([[False, True, True]]))
        >>> front.flatten(), places.flatten()
        (tensor([1., 2., 0.]), tensor([1, 2, 0]))
    """
    x = zero_pads(x, mask)
    places = mask.byte().argsort(dim=1, descending=True, stable=True).unsqueeze(2)
    return x.gather(1, places.expand_as(x)), places


def without_hidden(
    mask: Bool[Tensor, "b t"] | None, *sequences: Float[Tensor, "b t d"]
) -> tuple[Tensor | None, list[Tensor]]:
    """Leave out as many steps as no sample of the batch needs.

    For computations to which the order of the steps does not matter, such as the keys of an
    attention. It saves their cost where the values may be looked at; elsewhere nothing is left
    out.

    Args:
        mask: True where a step is real; None: all are.
        sequences: Features of the same steps.

    Returns:
        The mask, None where every step that is left is real, and the sequences, with the real
        steps first, ``(b, s, d)`` with ``1 <= s <= t``.

    Example:
        >>> mask = torch.tensor([[False, True, True], [True, False, False]])
        >>> without_hidden(mask, torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]]))
        (tensor([[ True,  True],
                [ True, False]]), [tensor([[[2.],
                 [3.]],
        <BLANKLINE>
                [[4.],
                 [5.]]])])
    """
    if mask is None or not is_readable(mask):
        return mask, list(sequences)
    steps = mask.sum(dim=1).tolist()
    longest = max(1, *steps) if steps else 1
    if longest < mask.shape[1]:
        order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]
        rows = torch.arange(len(mask)).unsqueeze(1)
        sequences = tuple(x[rows, order] for x in sequences)
        mask = mask[rows, order]
    return None if min(steps, default=0) == longest else mask, list(sequences)


def unless_full(mask: Bool[Tensor, "*n"] | None) -> Tensor | None:
    """Return the mask, or None where it can be seen that every entry is real.

    Example:
        >>> unless_full(torch.tensor([True, True])) is None
        True
    """
    return None if mask is None or (is_readable(mask) and bool(mask.all())) else mask


def is_traced(x: Tensor) -> bool:
    """Whether a compiler, an exporter, a functional transform or a subclass sees the operations.

    Example:
        >>> is_traced(torch.ones(1)), bool(torch.vmap(lambda x: x + is_traced(x))(torch.zeros(1)))
        (False, True)
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or type(x) not in (Tensor, nn.Parameter)
    )


def is_readable(x: Tensor) -> bool:
    """Whether the values may decide what is done: on a CPU, where nothing is traced.

    Elsewhere a look at them would make a GPU wait, break a graph or be frozen into it.

    Example:
        >>> is_readable(torch.ones(1)), is_readable(torch.ones(1, device="meta"))
        (True, False)
    """
    return x.device.type == "cpu" and not is_traced(x)
