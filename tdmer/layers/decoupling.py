"""Decoupling of a modality into an invariant and a specific part (Eq. 1)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, cat, nn

from tdmer._checks import check_count, check_names
from tdmer.masks import zero_pads


class Decoupled(NamedTuple):
    """What :class:`Decoupler` returns: one entry per modality, each ``(b, t, d)``."""

    common: dict[str, Tensor]
    """``C_m``, modality-invariant features."""
    private: dict[str, Tensor]
    """``P_m``, modality-specific features."""
    reconstructed: dict[str, Tensor]
    """``D_m``, the input as rebuilt from both parts."""


class Decoupler(nn.Module):
    """Common and private encoders, private decoders (Eq. 1 and the decoders of Eq. 4).

    ``C_m = E_com(X_m)``, ``P_m = E_m(X_m)``, ``D_m = Dec_m([C_m, P_m])``. The common encoder is
    shared by all modalities. Encoders have one hidden layer. The common one ends in a bounded
    activation, because the central moment discrepancy of Eq. 2 needs features on a compact
    interval; the private ones end in tanh, because features that are never negative cannot become
    orthogonal to one another (Eqs. 5, 6).

    Args:
        names: Names of the modalities.
        width: Width ``d`` of the features.
        activation: Builds the bounded end of the common encoder; :class:`torch.nn.Sigmoid` or
            :class:`torch.nn.Tanh`.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Section II.B.

    Example:
        >>> import torch
        >>> decoupler = Decoupler(["text", "audio"], 8)
        >>> parts = decoupler({"text": torch.zeros(2, 5, 8), "audio": torch.zeros(2, 9, 8)})
        >>> parts.private["audio"].shape
        torch.Size([2, 9, 8])
    """

    common_encoder: nn.Sequential
    private_encoders: nn.ModuleDict
    decoders: nn.ModuleDict

    def __init__(
        self,
        names: Sequence[str],
        width: int,
        *,
        activation: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        check_names("names", names)
        check_count("width", width)

        def encoder(end: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width), end
            )

        self.common_encoder = encoder(activation())
        self.private_encoders = nn.ModuleDict({name: encoder(nn.Tanh()) for name in names})
        self.decoders = nn.ModuleDict({name: nn.Linear(2 * width, width) for name in names})

    def forward(
        self,
        features: Mapping[str, Float[Tensor, "b _ d"]],
        masks: Mapping[str, Bool[Tensor, "b _"] | None] | None = None,
    ) -> Decoupled:
        """Split the features of every modality; padded steps are 0 in every part."""
        common, private, reconstructed = {}, {}, {}
        for name, x in features.items():
            mask = None if masks is None else masks.get(name)
            x = zero_pads(x, mask)
            common[name] = zero_pads(self.common_encoder(x), mask)
            private[name] = zero_pads(self.private_encoders[name](x), mask)
            both = cat([common[name], private[name]], dim=-1)
            reconstructed[name] = zero_pads(self.decoders[name](both), mask)
        return Decoupled(common, private, reconstructed)
