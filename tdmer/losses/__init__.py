"""The losses: every term of Eq. 14 as a function, and as a Module where it has options."""

from tdmer.losses.cmd import (
    CMDLoss,
    central_moments,
    cmd_loss,
    corrected_cmd_loss,
    merge_moments,
    pairwise_cmd_loss,
)
from tdmer.losses.cross_modal import cross_modal_loss, edge_entropy
from tdmer.losses.orthogonal import OrthogonalLoss, orthogonal_loss
from tdmer.losses.reconstruction import reconstruction_loss

__all__ = [
    "CMDLoss",
    "OrthogonalLoss",
    "central_moments",
    "cmd_loss",
    "corrected_cmd_loss",
    "cross_modal_loss",
    "edge_entropy",
    "merge_moments",
    "orthogonal_loss",
    "pairwise_cmd_loss",
    "reconstruction_loss",
]
