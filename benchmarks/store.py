"""Memory and speed of a store beside the same data in memory, at the size of CMU-MOSEI.

Writes a pickle in MMSA's layout (16,326 training samples of text 50x768, audio 500x74 and vision
500x35, float32, padded on the right; 6 GB), converts it with ``load_mmsa(path, store=...)`` and
goes through it from the store and from memory. Each task is a process of its own, and what is
reported is its peak resident memory (VmHWM of Linux): (i) unpickling alone, (ii) conversion,
(iii) an epoch from the store, (iv) the same from memory. An epoch loads and collates all samples,
shuffled, and then trains the default TDMER on ``--batches`` batches of similar length, the longest
among them; 0: on all. "Cold": the files are not in the cache of the system. From the root of the
repository:

    python benchmarks/store.py --folder /tmp/mosei            # lengths as in MOSEI
    python benchmarks/store.py --folder /tmp/mosei --full     # every step real
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
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader

from tdmer import TDMER, Sentiment, TDMERLoss
from tdmer.data import LengthBucketSampler, MultimodalDataset, collate, load_mmsa, load_pickle
from tdmer.data.store import open_store

SHAPES = {"text": (50, 768), "audio": (500, 74), "vision": (500, 35)}
SAMPLES = {"train": 16_326, "valid": 200, "test": 200}
BATCH = 32
COLUMNS = (
    "samples", "lengths", "task", "seconds", "peak_mib", "load_cold", "load", "train", "batches"
)  # fmt: skip


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


def from_store(source: Path, store: Path, batches: int) -> dict[str, float]:
    for path in store.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data = open_store(store)["train"]
    return {"load_cold": load(data), **epoch(data, batches)}


def from_memory(source: Path, store: Path, batches: int) -> dict[str, float]:
    return epoch(load_mmsa(source)["train"], batches)


TASKS = {
    "unpickle": unpickle,
    "convert": convert,
    "epoch from store": from_store,
    "epoch from memory": from_memory,
}


def epoch(data: MultimodalDataset, batches: int) -> dict[str, float]:
    return {"load": load(data), **train(data, batches)}


def load(data: MultimodalDataset) -> float:
    """Return samples per second of loading alone, over all samples."""
    torch.manual_seed(0)
    start = time.perf_counter()
    for _ in DataLoader(data, BATCH, shuffle=True, collate_fn=collate):
        pass
    return round(len(data) / (time.perf_counter() - start))


def train(data: MultimodalDataset, count: int) -> dict[str, float]:
    """Return samples per second of training on some batches, the longest among them."""
    torch.manual_seed(0)
    model, objective = TDMER(data.dims, num_classes=7), TDMERLoss(Sentiment())
    optimizer = torch.optim.AdamW(model.parameters())
    steps = torch.stack(list(data.lengths.values())).sum(dim=0)
    batches = list(LengthBucketSampler(data.lengths, BATCH))
    batches.sort(key=lambda batch: -int(steps[batch].sum()))
    # The longest first, so that it serves as the warm-up that is not timed, and then a fair share.
    chosen = batches[:1] + batches[:: max(1, len(batches) // count)] if count else batches
    samples, start = 0, time.perf_counter()
    for number, batch in enumerate(DataLoader(data, batch_sampler=chosen, collate_fn=collate)):
        optimizer.zero_grad()
        objective(model(batch.inputs, batch.masks), batch.labels).total.backward()
        optimizer.step()
        if number == 0:
            start = time.perf_counter()
        else:
            samples += len(batch.ids)
    return {
        "train": round(samples / (time.perf_counter() - start), 1),
        "batches": len(chosen),
    }


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
