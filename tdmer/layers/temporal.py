"""Temporal features: a convolution that brings every modality to one width."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_features, check_mask, check_real
from tdmer.masks import zero_pads


class TemporalConv(nn.Module):
    """1D convolution over time to a common width, blind to padded steps.

    "Same" padding keeps the length and so the mask; padded steps are 0 before the convolution, as
    the border is, and after it. Dropout, before and after, takes a feature out of all steps of a
    sequence: single entries would be averaged away over time.

    Args:
        features: Width ``f`` of the input.
        width: Width ``d`` of the output.
        kernel_size: Steps under the kernel, at least 1.
        dropout: Probability with which an input feature is dropped in training, in [0, 1).
        output_dropout: The same of an output feature.

    Example:
        >>> import torch
        >>> conv = TemporalConv(2, 8, kernel_size=3)
        >>> conv(torch.zeros(4, 5, 2)).shape
        torch.Size([4, 5, 8])
    """

    dropout: nn.Dropout1d
    pad: nn.ConstantPad1d
    conv: nn.Conv1d
    output_dropout: nn.Dropout1d

    def __init__(
        self,
        features: int,
        width: int,
        *,
        kernel_size: int = 3,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("features", features)
        check_count("width", width)
        check_count("kernel_size", kernel_size)
        check_real("dropout", dropout, below=1.0)
        check_real("output_dropout", output_dropout, below=1.0)
        self.dropout = nn.Dropout1d(dropout)
        # Explicit padding: torch's "same" pads an even kernel on the right, too, but warns.
        self.pad = nn.ConstantPad1d(((kernel_size - 1) // 2, kernel_size // 2), 0.0)
        self.conv = nn.Conv1d(features, width, kernel_size)
        self.output_dropout = nn.Dropout1d(output_dropout)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Convolve ``x`` of shape ``(b, t, f)`` into ``(b, t, d)``; 0 where ``mask`` is False."""
        check_features("x", x, ndim=3, width=self.conv.in_channels)
        check_mask("mask", mask, x.shape[:-1])
        x = zero_pads(x, mask).to(self.conv.weight.dtype)  # Normalised inputs stay in float32.
        x = self.dropout(x.transpose(1, 2))
        x = self.output_dropout(self.conv(self.pad(x)))
        return zero_pads(x.transpose(1, 2), mask)
