"""TDMER: task-driven multimodal emotion recognition, as losses, layers, fusion and a model.

Names are imported from their home when first used, so that ``import tdmer`` itself is free.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdmer.fusion import TCPFusion, confidence_loss, tcp_loss, true_class_probability
    from tdmer.losses import (
        CMDLoss,
        OrthogonalLoss,
        central_moments,
        cmd_loss,
        cross_modal_loss,
        edge_entropy,
        orthogonal_loss,
        pairwise_cmd_loss,
        reconstruction_loss,
    )
    from tdmer.metrics import classification_metrics, sentiment_metrics
    from tdmer.model import TDMER, TDMEROutput
    from tdmer.objective import LossTerms, TDMERLoss
    from tdmer.prediction import Predictor
    from tdmer.tasks import Classification, MultiLabel, Sentiment

__all__ = [
    "TDMER",
    "CMDLoss",
    "Classification",
    "LossTerms",
    "MultiLabel",
    "OrthogonalLoss",
    "Predictor",
    "Sentiment",
    "TCPFusion",
    "TDMERLoss",
    "TDMEROutput",
    "central_moments",
    "classification_metrics",
    "cmd_loss",
    "confidence_loss",
    "cross_modal_loss",
    "edge_entropy",
    "orthogonal_loss",
    "pairwise_cmd_loss",
    "reconstruction_loss",
    "sentiment_metrics",
    "tcp_loss",
    "true_class_probability",
]

_HOMES = ("losses", "fusion", "model", "objective", "tasks", "metrics", "prediction")
_BESIDE = (
    *("layers", "masks", "inputs", "data", "pretrained"),
    *("trainer", "viz", "encoders", "features", "baselines"),
)
_MODULES = (*_HOMES, *_BESIDE)


def __getattr__(name: str) -> object:
    found: object
    if name in _MODULES:
        return import_module(f"tdmer.{name}")
    if name == "__version__":
        from importlib.metadata import version

        found = version("tdmer")
    elif name in __all__:
        modules = (import_module(f"tdmer.{home}") for home in _HOMES)
        found = next(getattr(module, name) for module in modules if hasattr(module, name))
    else:
        raise AttributeError(f"module 'tdmer' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})
