"""A recurrent net over the real steps of a sequence."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tdmer._checks import check_count, check_features, check_mask
from tdmer.masks import real_first, zero_pads


class Recurrence(NamedTuple):
    """What :class:`Recurrent` returns; ``h`` is its width, twice that of both directions."""

    sequence: Tensor
    """The state after every step, ``(b, t, h)``; 0 in padded steps."""
    last: Tensor
    """The state after the last real step, going back after the first, ``(b, h)``; 0 without any."""


class Recurrent(nn.Module):
    """An LSTM that goes from real step to real step, wherever the pads are.

    Args:
        features: Width ``f`` of the input.
        width: Width of the state.
        bidirectional: Whether a second one goes back; the states are joined.

    Raises:
        TypeError: A width is not an int.
        ValueError: A width is below 1.

    Example:
        >>> states = Recurrent(2, 8, bidirectional=True)(torch.zeros(4, 5, 2))
        >>> states.sequence.shape, states.last.shape
        (torch.Size([4, 5, 16]), torch.Size([4, 16]))
    """

    lstm: nn.LSTM

    def __init__(self, features: int, width: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        check_count("features", features)
        check_count("width", width)
        self.lstm = nn.LSTM(features, width, batch_first=True, bidirectional=bidirectional)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Recurrence:
        """Return the states; ``x`` has at least one step."""
        check_features("x", x, ndim=3, width=self.lstm.input_size)
        check_mask("mask", mask, x.shape[:-1])
        x = zero_pads(x, mask).to(next(self.lstm.parameters()).dtype)
        if mask is None:
            sequence, (last, _) = self.lstm(x)
            return Recurrence(sequence, last.transpose(0, 1).flatten(1))
        front, places = real_first(x, mask)
        counts = mask.sum(dim=1).clamp(min=1)
        if self.lstm.bidirectional:
            packed = pack_padded_sequence(
                front, counts.cpu(), batch_first=True, enforce_sorted=False
            )
            states, (ends, _) = self.lstm(packed)
            found, _ = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
            last = ends.transpose(0, 1).flatten(1)
        else:  # Pads come last, and change no state before them. Packed, it is slow on a CPU.
            found, _ = self.lstm(front)
            last = found.gather(1, (counts - 1)[:, None, None].expand(-1, 1, found.shape[2]))[:, 0]
        sequence = torch.zeros_like(found).scatter(1, places.expand_as(found), found)
        return Recurrence(zero_pads(sequence, mask), zero_pads(last, mask.any(dim=1)))
