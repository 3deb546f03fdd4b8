"""Latency at batch 1 and throughput at batch 256 of the default model, eager and compiled.

Lengths are those of MOSI: 12 words with 94 and 125 frames, its mean, and 50/375/500, its longest.
From the root of the repository:

    python examples/benchmarks/inference.py
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch

from tdmer import TDMER

DIMS = {"text": 768, "audio": 5, "video": 20}
LENGTHS = ((12, 94, 125), (50, 375, 500))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="per setting")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = TDMER(DIMS, 7).eval()
    rows = []
    for steps in LENGTHS:
        for batch in (1, 256):
            x = {m: torch.randn(batch, t, DIMS[m]) for m, t in zip(DIMS, steps, strict=True)}
            contenders = {"eager": lambda x=x: model(x).logits}
            if not args.eager:
                torch.compiler.reset()
                compiled = torch.compile(lambda x: model(x).logits, fullgraph=True, dynamic=False)
                contenders["compiled"] = lambda x=x, compiled=compiled: compiled(x)
            times: dict[str, list[float]] = {name: [] for name in contenders}
            with torch.inference_mode():
                for run in contenders.values():
                    for _ in range(3):  # Compilation, caches, the allocator.
                        run()
                end = time.perf_counter() + args.seconds
                while time.perf_counter() < end or len(times["eager"]) < 3:
                    for name, run in contenders.items():
                        start = time.perf_counter()
                        run()
                        times[name].append(1000 * (time.perf_counter() - start))
            for name, values in times.items():
                median = statistics.median(values)
                row = {
                    "lengths": "/".join(map(str, steps)),
                    "batch": batch,
                    "mode": name,
                    "median_ms": round(median, 3),
                    "samples_per_second": round(1000 * batch / median),
                    "threads": args.threads,
                    "torch": torch.__version__,
                }
                rows.append(row)
                print(
                    "{lengths:11} batch {batch:3} {mode:9} {median_ms:9} ms "
                    "{samples_per_second:7} samples/s".format(**row),
                    flush=True,
                )
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "inference.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
