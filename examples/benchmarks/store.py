"""Memory and speed of a store beside the same data in memory, at the size of CMU-MOSEI.

Writes a pickle in MMSA's layout (16,326 training samples of text 50x768, audio 500x74 and vision
500x35, float32, padded on the right; 6 GB), converts it with ``load_mmsa(path, store=...)`` and
goes through it from the store and from memory. Each task is a process of its own, and what is
reported is its peak resident memory (VmHWM of Linux): unpickling alone, conversion, the report of
``describe``, an epoch from the store and the same from memory. An epoch loads and collates all
samples, shuffled, and then trains the default TDMER on ``--batches`` batches of similar length, the
longest first; 0: on all. Last, store and memory take turns, batch by batch, so that a busy machine
slows both: samples per second of loading alone, over all samples, and of training. "Cold": the
files are not in the cache of the system. From the root of the repository:

    python examples/benchmarks/store.py --folder /tmp/mosei            # lengths as in MOSEI
    python examples/benchmarks/store.py --folder /tmp/mosei --full     # every step real
"""

import argparse
import csv
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader

from tdmer import TDMER, Sentiment, TDMERLoss
from tdmer.data import (
    Batch,
    LengthBucketSampler,
    MultimodalDataset,
    collate,
    describe,
    load_mmsa,
    load_pickle,
    open_store,
)

SHAPES = {"text": (50, 768), "audio": (500, 74), "vision": (500, 35)}
SAMPLES = {"train": 16_326, "valid": 200, "test": 200}
BATCH = 32
COLUMNS = ("samples", "lengths", "task", "seconds", "peak_mib", "load_cold", "load", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for 12 GB, which are deleted")
    parser.add_argument("--full", action="store_true", help="every step real")
    parser.add_argument("--share", type=float, default=1.0, help="of the samples")
    parser.add_argument("--batches", type=int, default=40, help="to train on; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source, store = args.folder / "mosei.pkl", args.folder / "store"
    if args.task:
        start = time.perf_counter()
        row = TASKS[args.task](source, store, args.batches) or {}
        row |= {"seconds": round(time.perf_counter() - start, 1), "peak_mib": peak()}
        print(json.dumps(row))
        return
    args.folder.mkdir(parents=True)
    rows = []
    try:
        write_pickle(source, args.full, args.share)
        for task in TASKS:
            command = [sys.executable, __file__, "--folder", args.folder, "--task", task]
            command += ["--batches", str(args.batches), "--threads", str(args.threads)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            row = {
                "samples": round(SAMPLES["train"] * args.share),
                "lengths": "full" if args.full else "realistic",
                "task": task,
                **json.loads(answer),
            }
            print(row, flush=True)
            rows.append(row)
        sizes = (source.stat().st_size, sum(x.stat().st_size for x in store.iterdir()))
        print("pickle {:.2f} GB, store {:.2f} GB".format(*(size / 1e9 for size in sizes)))
    finally:
        shutil.rmtree(args.folder)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / f"store_{rows[0]['lengths']}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def unpickle(source: Path, store: Path, batches: int) -> None:
    load_pickle(source)


def convert(source: Path, store: Path, batches: int) -> None:
    load_mmsa(source, store=store)


def report(source: Path, store: Path, batches: int) -> None:
    describe(open_store(store))


def from_store(source: Path, store: Path, batches: int) -> dict[str, str]:
    for path in store.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data = {"store": open_store(store)["train"]}
    speed = load(data)
    train(data, batches)
    return {"load_cold": speed}


def from_memory(source: Path, store: Path, batches: int) -> None:
    data = {"memory": load_mmsa(source)["train"]}
    load(data)
    train(data, batches)


def turns(source: Path, store: Path, batches: int) -> dict[str, str]:
    data = {"store": open_store(store)["train"], "memory": load_mmsa(source)["train"]}
    return {"load": load(data), "train": train(data, batches)}


TASKS = {
    "unpickle": unpickle,
    "convert": convert,
    "describe the store": report,
    "epoch from store": from_store,
    "epoch from memory": from_memory,
    "store : memory": turns,
}


def load(data: dict[str, MultimodalDataset]) -> str:
    """Load and collate all samples, shuffled."""
    order = np.random.default_rng(0).permutation(len(next(iter(data.values()))))
    return go_through(data, np.array_split(order, len(order) // BATCH), lambda batch: None)


def train(data: dict[str, MultimodalDataset], count: int) -> str:
    """Train on some batches, the longest first."""
    first = next(iter(data.values()))
    torch.manual_seed(0)
    model, objective = TDMER(first.dims, num_classes=7), TDMERLoss(Sentiment())
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        objective(model(batch.inputs, batch.masks), batch.labels).total.backward()
        optimizer.step()

    steps = torch.stack(list(first.lengths.values())).sum(dim=0)
    batches = list(LengthBucketSampler(first.lengths, BATCH))
    batches.sort(key=lambda batch: -int(steps[batch].sum()))
    return go_through(data, batches[:: max(1, len(batches) // count)] if count else batches, step)


def go_through(
    data: dict[str, MultimodalDataset], batches: list, step: Callable[[Batch], None]
) -> str:
    """Return samples per second; the data sets take turns, and the first batch is not timed."""
    loaders = {
        name: iter(DataLoader(one, batch_sampler=batches, collate_fn=collate))
        for name, one in data.items()
    }
    seconds = dict.fromkeys(data, 0.0)
    for number in range(len(batches)):
        for name in sorted(data, reverse=number % 2 == 1):
            start = time.perf_counter()
            step(next(loaders[name]))
            seconds[name] += (time.perf_counter() - start) * (number > 0)
    samples = sum(map(len, batches[1:]))
    return " : ".join(f"{samples / seconds[name]:.4g}" for name in data)


def peak() -> int:
    """Return the peak resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def write_pickle(path: Path, full: bool, share: float) -> None:
    """Write the pickle opcode by opcode: pickle.dump would need all of it in memory."""
    with path.open("wb") as file:
        file.write(pickle.PROTO + b"\x04" + pickle.EMPTY_DICT + pickle.MARK)
        for seed, (split, count) in enumerate(SAMPLES.items()):
            count, rng = round(count * share), np.random.default_rng(seed)
            # About 20 words, seconds of speech at 3 words each, and frames of both at their rates.
            words = rng.lognormal(np.log(20), 0.6, count).clip(2, 50).astype(int)
            lengths = {"text": words, "audio": words * 8, "vision": words * 6}
            file.write(part(split) + pickle.EMPTY_DICT + pickle.MARK)
            for name, (longest, width) in SHAPES.items():
                steps = [longest] * count if full else lengths[name].clip(max=longest).tolist()
                chunks = functools.partial(sequences, rng, steps, longest, width)
                file.write(part(name))
                write_array(file, (count, longest, width), chunks())
            file.write(part("regression_labels") + part(rng.uniform(-3, 3, count).tolist()))
            file.write(part("id") + part([f"{split}{number}$_$0" for number in range(count)]))
            file.write(pickle.SETITEMS)
        file.write(pickle.SETITEMS + pickle.STOP)


def sequences(
    rng: np.random.Generator, lengths: list[int], longest: int, width: int
) -> Iterator[np.ndarray]:
    for steps in lengths:
        x = np.zeros((longest, width), np.float32)
        x[:steps] = rng.random((steps, width), np.float32) + 0.5
        yield x


def part(value: object) -> bytes:
    """Return the opcodes of a value, without beginning and end."""
    return pickle.dumps(value, 2)[2:-1]


def write_array(file: BinaryIO, shape: tuple[int, ...], chunks: Iterator[np.ndarray]) -> None:
    """Write the opcodes of a float32 array: _reconstruct(ndarray, (0,), b"b"), then its state."""
    file.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR")
    size = 4 * int(np.prod(shape))
    file.write(b"(K\x01" + part(shape) + part(np.dtype(np.float32)) + pickle.NEWFALSE)
    file.write(pickle.BINBYTES8 + size.to_bytes(8, "little"))
    for chunk in chunks:
        file.write(chunk.data)
    file.write(b"tb")


if __name__ == "__main__":
    main()
