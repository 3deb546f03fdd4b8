"""Data sets of ragged multimodal sequences, and readers for the files people have."""

from tdmer.data.arrays import from_arrays, from_sequences
from tdmer.data.batch import Batch, LengthBucketSampler, collate
from tdmer.data.dataset import MultimodalDataset, Sample
from tdmer.data.groups import normalize_by_group
from tdmer.data.readers._pickle import load_pickle
from tdmer.data.readers.misa import load_misa
from tdmer.data.readers.mmsa import load_mmsa
from tdmer.data.readers.mult import load_mult
from tdmer.data.report import describe
from tdmer.data.store import open_store, write_store
from tdmer.data.synthetic import Synthetic, make_synthetic

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
    "normalize_by_group",
    "open_store",
    "write_store",
]
