"""One cross-attention, forward and backward, against PyTorch's module and MMSA's.

All have the same weights; the outputs are compared before anything is timed. The contenders take
turns. From the root of the repository, with MMSA (``pip install --no-deps MMSA``):

    python examples/benchmarks/attention.py
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers import from_mmsa
from torch import Tensor, nn

from tdmer.layers import CrossAttention

BATCH, TARGET, SOURCE, WIDTH, HEADS = 16, 375, 500, 40, 8


def modules() -> tuple[CrossAttention, nn.MultiheadAttention, nn.Module]:
    """Return the three with the same weights."""
    ours = CrossAttention(["source"], WIDTH, HEADS, positions=False)
    torchs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    path = "models.subNets.transformers_encoder.multihead_attention"
    mmsas = from_mmsa(path, "MultiheadAttention")(WIDTH, HEADS)
    with torch.no_grad():
        parts = [part["source"] for part in (ours.query, ours.key, ours.value)]
        for theirs in (torchs, mmsas):
            theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            theirs.out_proj.load_state_dict(ours.out["source"].state_dict())
    return ours, torchs, mmsas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ours, torchs, mmsas = modules()
    target = torch.randn(BATCH, TARGET, WIDTH, requires_grad=True)
    source = torch.randn(BATCH, SOURCE, WIDTH, requires_grad=True)
    first = torch.arange(SOURCE).expand(BATCH, -1) < SOURCE // 2
    some = torch.rand(BATCH, SOURCE).argsort(1) < SOURCE // 2

    def mmsa() -> Tensor:
        # Time comes first, and key and value are one tensor, as MulT calls it.
        keys = source.transpose(0, 1)
        return mmsas(target.transpose(0, 1), keys, keys)[0].transpose(0, 1)

    contenders: dict[str, Callable[[], Tensor]] = {
        "tdmer": lambda: ours(target, {"source": source}),
        "tdmer, second half hidden": lambda: ours(target, {"source": source}, {"source": first}),
        "tdmer, random half hidden": lambda: ours(target, {"source": source}, {"source": some}),
        "nn.MultiheadAttention": lambda: torchs(target, source, source, need_weights=False)[0],
        "nn.MultiheadAttention, half hidden": lambda: torchs(
            target, source, source, need_weights=False, key_padding_mask=~first
        )[0],
        "MMSA": mmsa,
    }
    results = {name: run().detach() for name, run in contenders.items()}
    for one, other in (
        ("tdmer", "nn.MultiheadAttention"),
        ("tdmer", "MMSA"),
        ("tdmer, second half hidden", "nn.MultiheadAttention, half hidden"),
    ):
        gap = (results[one] - results[other]).abs().max().item()
        print(f"{one} and {other} differ by {gap:.1e}")
        if gap > 1e-5:
            raise SystemExit("The outputs are not the same.")
    gradient = torch.randn_like(target)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run().backward(gradient)
            times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        {
            "contender": name,
            "ms": round(value, 2),
            "times_tdmer": round(value / medians["tdmer"], 2),
            "threads": args.threads,
            "torch": torch.__version__,
        }
        for name, value in medians.items()
    ]
    for row in rows:
        print("{contender:36} {ms:8} ms {times_tdmer:6} x tdmer".format(**row))
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "attention.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
