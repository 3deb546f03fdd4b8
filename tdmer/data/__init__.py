"""Data sets of ragged multimodal sequences, and readers for the files people have."""

from tdmer.data.dataset import Batch, MultimodalDataset, Sample, collate, describe
from tdmer.data.misa import load_misa
from tdmer.data.mmsa import load_mmsa
from tdmer.data.mult import load_mult
from tdmer.data.sampling import LengthBucketSampler
from tdmer.data.sequences import from_arrays, from_sequences
from tdmer.data.store import open_store, write_store
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
    "from_arrays",
    "from_sequences",
    "load_misa",
    "load_mmsa",
    "load_mult",
    "load_pickle",
    "make_synthetic",
    "open_store",
    "write_store",
]
