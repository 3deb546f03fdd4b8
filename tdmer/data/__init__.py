"""Data sets of ragged multimodal sequences, and readers for the files people have."""

from tdmer.data.dataset import Batch, MultimodalDataset, Sample, collate, describe
from tdmer.data.mmsa import load_mmsa
from tdmer.data.sampling import LengthBucketSampler
from tdmer.data.synthetic import Synthetic, make_synthetic
from tdmer.data.unpickling import load_pickle

__all__ = [
    "Batch",
    "LengthBucketSampler",
    "MultimodalDataset",
    "Sample",
    "Synthetic",
    "collate",
    "describe",
    "load_mmsa",
    "load_pickle",
    "make_synthetic",
]
