"""The data of the examples: a file in MMSA's layout, a store, or synthetic data."""

import hashlib
from pathlib import Path

import torch

from tdmer import Sentiment
from tdmer.data import MultimodalDataset, load_mmsa, make_synthetic, open_store

SPLITS = ("train", "valid", "test")


def load_splits(path: Path | None, task: Sentiment) -> dict[str, MultimodalDataset]:
    """Return the splits of a file or of a store, or those of synthetic data without a path.

    Raises:
        OSError: There is no such file.
        TypeError: Labels are not scores.
        ValueError: The file is none of these, or its labels are not one score per sample.
    """
    if path is None:
        world = make_synthetic({"train": 800, "valid": 200, "test": 400}, missing=0.1)
        return {split: drawn.dataset for split, drawn in world.items()}
    splits = open_store(path) if path.is_dir() else load_mmsa(path)
    for split, data in splits.items():
        try:
            task(torch.zeros(len(data), task.num_classes), data.labels)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}, {split}: {error}") from None
    return splits


def check_training(splits: dict[str, MultimodalDataset], task: Sentiment) -> None:
    """Raise unless there is something to learn from, to choose by and to test on.

    Raises:
        ValueError: A split is missing, or there is no label to train with or to choose by.
    """
    if not set(SPLITS) <= splits.keys():
        raise ValueError(f"--data must have the splits {list(SPLITS)}, got {list(splits)}")
    for split in ("train", "valid"):
        if not task.labelled(splits[split].labels).any():
            raise ValueError(f"the split {split!r} must have a label, got none")


def fingerprint(path: Path | None) -> dict[str, str]:
    """Return the SHA-256 of every file of the data, so that other data are told apart."""
    if path is None:
        return {"synthetic": "make_synthetic"}
    found = {}
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        with part.open("rb") as file:
            found[part.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
