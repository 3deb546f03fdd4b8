"""Fusion by task contribution: true class probability and what is weighed by it."""

from tdmer.fusion.tcp import (
    FusionOutput,
    MeanFusion,
    TCPFusion,
    TCPLoss,
    confidence_loss,
    tcp_loss,
    true_class_probability,
)

__all__ = [
    "FusionOutput",
    "MeanFusion",
    "TCPFusion",
    "TCPLoss",
    "confidence_loss",
    "tcp_loss",
    "true_class_probability",
]
