"""Fusion: branches weighed by their estimated true class probability, or alike; context."""

from tdmer.fusion.context import add_context
from tdmer.fusion.mean import MeanFusion
from tdmer.fusion.tcp import (
    Confidence,
    FusionOutput,
    TCPFusion,
    confidence_loss,
    tcp_loss,
    true_class_probability,
)

__all__ = [
    "Confidence",
    "FusionOutput",
    "MeanFusion",
    "TCPFusion",
    "add_context",
    "confidence_loss",
    "tcp_loss",
    "true_class_probability",
]
