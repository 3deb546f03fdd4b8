"""The losses: every term of Eq. 14 as a function, and as a Module where it has options.

Names are imported from their home when first used, so that one loss does not load the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOMES = {
    "OrthogonalLoss": "orthogonal",
    "cross_modal_loss": "cross_modal",
    "edge_entropy": "cross_modal",
    "orthogonal_loss": "orthogonal",
    "reconstruction_loss": "reconstruction",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'tdmer.losses' has no attribute {name!r}")
    found: object = getattr(import_module(f"tdmer.losses.{_HOMES.get(name, 'cmd')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
