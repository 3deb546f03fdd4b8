"""Layers: temporal convolution, recurrence, decoupler, cross-attention, edge weights."""

from tdmer._statistics import FeatureStatistics
from tdmer.layers.cross_attention import (
    CrossAttention,
    CrossModalBlock,
    CrossModalEncoder,
    sinusoidal_positions,
)
from tdmer.layers.decoupling import Decoupled, Decoupler
from tdmer.layers.edges import EdgeWeights, ordered_pairs
from tdmer.layers.normalization import InputNormalization
from tdmer.layers.recurrent import Recurrence, Recurrent
from tdmer.layers.temporal import TemporalConv

__all__ = [
    "CrossAttention",
    "CrossModalBlock",
    "CrossModalEncoder",
    "Decoupled",
    "Decoupler",
    "EdgeWeights",
    "FeatureStatistics",
    "InputNormalization",
    "Recurrence",
    "Recurrent",
    "TemporalConv",
    "ordered_pairs",
    "sinusoidal_positions",
]
