"""Write synthetic data in which the parts of the method have something to do.

    python examples/experiments/world.py runs/world   # then: any experiment with --data runs/world

The label is made of a factor that all modalities hold and of one private factor for each. What
stands in the way, and what is there for it:

- **In every sample one modality is drowned in noise**, of a size that shows: to weigh the
  modalities sample by sample is what the fusion by task contribution is for.
- **A step of the text counts only if its tag is the one that the audio names**: one modality has to
  look something up in another, which is what the cross-modal attention is for.
- **Few training samples, and nuisances**: every modality has private factors that say nothing.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer.data import MultimodalDataset, write_store

SIZES = {"train": 400, "valid": 200, "test": 400}
DIMS = {"text": 16, "audio": 12, "video": 8}
STEPS = {"text": (4, 8), "audio": (3, 6), "video": (3, 6)}
TAGS, NUISANCES = 4, 2
PRIVATE = ("audio", "video")  # The text's own is what is looked up.


def write_world(folder: Path, seed: int = 0) -> Path:
    """Write the splits as a store, the same for the same seed, and return its folder."""
    if not folder.exists():
        write_store(folder, make_world(seed))
    return folder


def make_world(seed: int = 0) -> dict[str, MultimodalDataset]:
    """Draw the splits of one world."""
    rng = np.random.default_rng(seed)
    sources = 2 + NUISANCES + TAGS
    mixing = {m: rng.normal(size=(sources, width)) / 2 for m, width in DIMS.items()}
    return {split: _draw(rng, mixing, count) for split, count in SIZES.items()}


def _draw(
    rng: np.random.Generator, mixing: dict[str, NDArray[np.float64]], count: int
) -> MultimodalDataset:
    inputs: dict[str, list[NDArray[Any]]] = {m: [] for m in DIMS}
    labels = np.empty(count)
    for number in range(count):
        shared, looked_up = rng.normal(size=2)
        private = dict(zip(PRIVATE, rng.normal(size=len(PRIVATE)), strict=True))
        tag, drowned = rng.integers(TAGS), rng.choice(list(DIMS))
        for m, (least, most) in STEPS.items():
            steps = int(rng.integers(least, most + 1))
            tags = np.full(steps, tag) if m == "audio" else rng.permutation(np.arange(steps) % TAGS)
            # Only the text of the named tag tells; what other steps say is another's.
            value = np.full(steps, private.get(m, 0.0))
            if m == "text":
                value = np.where(tags == tag, looked_up, rng.normal(size=steps))
            named = 2 * np.eye(TAGS)[tags] * (m != "video")
            nuisances = np.tile(rng.normal(size=NUISANCES), (steps, 1))
            factors = np.column_stack([np.full(steps, shared), value, nuisances, named])
            noise = 4.0 if m == drowned else 0.3
            x = factors @ mixing[m] + noise * rng.normal(size=(steps, DIMS[m]))
            inputs[m].append(x.astype(np.float32))
        score = shared + 1.5 * looked_up + sum(private.values())
        labels[number] = 3 * np.tanh(score / 2.5)
    return MultimodalDataset(inputs, labels.astype(np.float32))


if __name__ == "__main__":
    print(write_world(Path(sys.argv[1])))
