"""Plain mean of the branches: the fusion without confidence."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_names
from tdmer.fusion.tcp import FusionOutput, check_branches
from tdmer.masks import zero_pads


class MeanFusion(nn.Module):
    """Plain mean of the present branches: what remains of :class:`TCPFusion` in an ablation.

    Args:
        branches: Names of the branches.
        width: Width ``d`` of every branch.

    Example:
        >>> fusion = MeanFusion(["common", "text"], width=1)
        >>> branches = {"common": torch.zeros(1, 1), "text": torch.ones(1, 1)}
        >>> fusion(branches, logits={}).fused
        tensor([[0.5000]])
    """

    branches: tuple[str, ...]

    def __init__(self, branches: Sequence[str], width: int) -> None:
        super().__init__()
        check_names("branches", branches)
        check_count("width", width)
        self.branches = tuple(sorted(branches))
        self.width = width

    def extra_repr(self) -> str:
        """Show the options."""
        return f"branches={list(self.branches)}, width={self.width}"

    def forward(
        self,
        branches: Mapping[str, Float[Tensor, "b d"]],
        logits: Mapping[str, Float[Tensor, "b k"]],
        present: Mapping[str, Bool[Tensor, " b"]] | None = None,
    ) -> FusionOutput:
        """Average the branches that a sample has, whatever their logits; see :class:`TCPFusion`."""
        check_branches(branches, self.branches, self.width)
        x = torch.stack([branches[name] for name in self.branches])
        everywhere = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        given = {} if present is None else present
        here = torch.stack([given.get(name, everywhere) for name in self.branches])
        shares = here.to(x.dtype) / here.sum(dim=0).clamp(min=1)
        fused = (shares.unsqueeze(2) * zero_pads(x, here)).sum(dim=0)
        weights = dict(zip(self.branches, shares, strict=True))
        return FusionOutput(fused, {name: weights[name] for name in branches})
