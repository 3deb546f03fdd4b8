"""The losses: every term of Eq. 14 as a function and a Module."""

from tdmer.losses.cmd import CMDLoss, central_moments, cmd_loss, pairwise_cmd_loss

__all__ = ["CMDLoss", "central_moments", "cmd_loss", "pairwise_cmd_loss"]
