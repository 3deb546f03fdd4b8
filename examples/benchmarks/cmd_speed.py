"""Time and memory of the central moment discrepancy of three modalities, forward and backward.

Contenders: this package, the textbook port (Eq. 2 term by term, three pairs), both again through
``torch.compile``, and the limit: reading each input twice and writing its gradient once, with the
gradient in new memory, as autograd returns it, and in memory that was already in use. They take
turns, so that a busy machine slows all of them. Run from the root of the repository:

    python examples/benchmarks/cmd_speed.py
"""

import argparse
import csv
import gc
import statistics
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from tdmer.losses import pairwise_cmd_loss

SIZES = [(16, 128), (128, 128), (8_000, 128), (100_000, 128)]
Run = Callable[[list[Tensor]], None]


def textbook(samples: list[Tensor], n_moments: int = 5) -> Tensor:
    """Eqs. 2, 3 as they are written."""
    loss = torch.zeros(())
    for x, y in combinations(samples, 2):
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        loss = loss + ((x_mean - y_mean) ** 2).sum().sqrt()
        for k in range(2, n_moments + 1):
            x_moment, y_moment = ((x - x_mean) ** k).mean(dim=0), ((y - y_mean) ** k).mean(dim=0)
            loss = loss + ((x_moment - y_moment) ** 2).sum().sqrt()
    return loss


def with_backward(loss: Callable[[list[Tensor]], Tensor]) -> Run:
    """Forward and backward, with gradients in new memory."""

    def run(samples: list[Tensor]) -> None:
        for x in samples:
            x.grad = None
        loss(samples).backward()

    return run


def limit(samples: list[Tensor]) -> None:
    """Read every input twice and write as much as its gradient to new memory."""
    gradients = []
    for x in samples:
        x.detach().sum(), x.detach().sum()
        gradients.append(torch.empty_like(x).fill_(1.0))


def warm_limit(samples: list[Tensor], gradients: dict[int, Tensor]) -> None:
    """Read every input twice and write as much as its gradient to memory in use."""
    for x in samples:
        x.detach().sum(), x.detach().sum()
        gradients.setdefault(id(x), torch.empty_like(x)).fill_(1.0)


def memory(name: str) -> int:
    """Resident bytes of this process: now (VmRSS), or at most since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def extra_memory(run: Run, samples: list[Tensor]) -> float:
    """Peak memory beyond the inputs, in units of the inputs; their gradient counts as 1."""
    for x in samples:
        x.grad = None
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(samples)
    extra = memory("VmHWM") - before
    return extra / sum(x.nbytes for x in samples)


def measure(n: int, d: int, contenders: dict[str, Run], seconds: float) -> list[dict[str, object]]:
    """Let the contenders take turns for some seconds; one row per contender."""
    generator = torch.Generator().manual_seed(0)
    samples = [torch.rand(n, d, generator=generator).pow(1 + i) for i in range(3)]
    for x in samples:
        x.requires_grad_()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        for _ in range(3):  # Compilation, caches, the allocator.
            run(samples)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["limit"]) < 5:
        for name, run in contenders.items():
            start = time.perf_counter()
            run(samples)
            times[name].append(1000 * (time.perf_counter() - start))
    # Where the inputs are small, the pages the allocator already holds hide what is used.
    measurable = 3 * n * d * 4 > 2**26 and Path("/proc/self/clear_refs").exists()
    best = {name: min(values) for name, values in times.items()}
    rows = []
    for name, run in contenders.items():
        rows.append(
            {
                "n": n,
                "d": d,
                "threads": torch.get_num_threads(),
                "contender": name,
                "best_ms": round(best[name], 4),
                "median_ms": round(statistics.median(times[name]), 4),
                "times_faster_than_textbook": round(best["textbook"] / best[name], 2),
                "times_the_limit": round(best[name] / best["limit"], 2),
                "extra_memory": round(extra_memory(run, samples), 2) if measurable else "",
            }
        )
    return rows


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Bars of the best times, one group per size."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = sorted({(row["n"], row["d"]) for row in rows})
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 4))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [row["best_ms"] for row in rows if row["contender"] == name]
        axes.bar([s + i * width for s in range(len(sizes))], heights, width, label=name)
    axes.set_xticks(
        [s + 0.4 - width / 2 for s in range(len(sizes))], [f"{n} x {d}" for n, d in sizes]
    )
    axes.set(yscale="log", ylabel="ms, forward and backward", xlabel="samples x features")
    axes.set_title(f"CMD of three modalities, {torch.get_num_threads()} threads: best time")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="per size")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for n, d in SIZES:
        gradients: dict[int, Tensor] = {}
        contenders: dict[str, Run] = {
            "tdmer": with_backward(pairwise_cmd_loss),
            "textbook": with_backward(textbook),
        }
        if not args.eager:
            torch.compiler.reset()
            for name, loss in (("tdmer", pairwise_cmd_loss), ("textbook", textbook)):
                compiled = torch.compile(loss, fullgraph=True, dynamic=False)
                contenders[f"{name}, compiled"] = with_backward(compiled)
        contenders["limit"] = limit
        contenders["limit, memory in use"] = lambda samples, kept=gradients: warm_limit(
            samples, kept
        )
        for row in measure(n, d, contenders, args.seconds):
            rows.append(row)
            print(
                f"({n:6}, {d}) {row['contender']:22} {row['best_ms']:10.3f} ms "
                f"(median {row['median_ms']:10.3f})  {row['times_faster_than_textbook']:8.2f} x "
                f"textbook  {row['times_the_limit']:8.2f} x limit  memory {row['extra_memory']}"
            )
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "benchmark_cmd.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.out / "benchmark_cmd.png")


if __name__ == "__main__":
    main()
