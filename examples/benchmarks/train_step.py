"""Time of one training step (all losses, AdamW) against MMSA's MulT and training as in MISA.

Width, heads, number of cross-modal layers and batch are the same on both sides; TDMER also runs as
it is by default. Three kinds of input: (a) 50/375/500 steps, all real; (b) 50/50/50; (c) lengths as
in MOSI, on which the peers pad to 50/375/500 as they do, and TDMER goes through an epoch in batches
of similar length (the figure is the mean over its batches). The contenders take turns. Then the
growth of time with batch, length and modalities, and a profile beside its floor: operations over
the rate of a matrix product, bytes over the rate of a copy, both measured here. From the root of
the repository, with MMSA (``pip install --no-deps MMSA``), on a machine that does nothing else:

    python examples/benchmarks/train_step.py
"""

import argparse
import csv
import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from peers import MISA, mult
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from tdmer import TDMER, Sentiment, TDMERLoss
from tdmer.data import LengthBucketSampler

DIMS = {"text": 768, "audio": 5, "video": 20}
FULL, SHORT = (50, 375, 500), (50, 50, 50)
BATCH, WIDTH, HEADS, LAYERS = 16, 50, 10, 4
Step = Callable[[], None]


def step_of(parameters: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Forward, backward and update."""
    optimizer = torch.optim.AdamW(parameters.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def draw(steps: tuple[int, ...], dims: dict[str, int], batch: int) -> dict[str, Tensor]:
    """Random sequences without pads."""
    return {
        name: torch.randn(batch, t, width)
        for (name, width), t in zip(dims.items(), steps, strict=True)
    }


def tdmer_step(batches: list[dict[str, Tensor]], lengths: list | None = None, **options) -> Step:
    """Return a step of TDMER through all batches, with masks where lengths are given."""
    first = batches[0]
    model = TDMER({name: x.shape[2] for name, x in first.items()}, 7, **options)
    objective = TDMERLoss(Sentiment())
    labels = [torch.rand(len(next(iter(batch.values())))) * 6 - 3 for batch in batches]
    masks = [None] * len(batches)
    if lengths is not None:
        masks = [
            {
                name: torch.arange(x.shape[1]) < t[:, None]
                for (name, x), t in zip(batch.items(), ts, strict=True)
            }
            for batch, ts in zip(batches, lengths, strict=True)
        ]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        for batch, mask, label in zip(batches, masks, labels, strict=True):
            optimizer.zero_grad()
            objective(model(batch, mask), label).total.backward()
            optimizer.step()

    return step


def peers(steps: tuple[int, ...], lengths: Tensor | None = None) -> dict[str, Step]:
    """Return the steps of MulT and MISA on one batch padded to ``steps``."""
    x = list(draw(steps, DIMS, BATCH).values())
    labels = torch.rand(BATCH) * 6 - 3
    if lengths is None:
        lengths = torch.tensor(steps).expand(BATCH, 3)
    transformer, codes = (
        mult(list(DIMS.values()), WIDTH, HEADS, LAYERS),
        MISA(list(DIMS.values()), WIDTH),
    )
    return {
        "MulT (MMSA)": step_of(
            transformer, lambda: (transformer(*x)["M"].squeeze(1) - labels).abs().mean()
        ),
        "MISA-style": step_of(codes, lambda: codes(x, list(lengths.T), labels)),
    }


def mosi_lengths(count: int) -> Tensor:
    """Steps per modality: words with mean 12.5 and 95th percentile 28, frames in proportion."""
    rng = np.random.default_rng(0)
    words = rng.lognormal(np.log(12.5) - 0.155, 0.62, count).round().clip(1, 50)
    return torch.from_numpy(np.outer(words, [1, 7.5, 10]).astype(np.int64))


def epoch() -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """All batches of an epoch of MOSI's size, padded to the longest of each, and their lengths."""
    lengths = mosi_lengths(1284)
    chosen = [lengths[batch] for batch in LengthBucketSampler(lengths.sum(1), BATCH)]
    batches = [draw(tuple(part.amax(0).tolist()), DIMS, len(part)) for part in chosen]
    return batches, [part.T for part in chosen]


def seconds(step: Step) -> float:
    """Time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def turns(contenders: dict[str, Step], repeats: int) -> dict[str, float]:
    """Return the median time of every contender; fast ones run more often per turn.

    The first call of a turn is not counted: it takes memory anew that another one gave back.
    """
    often = {}
    for name, step in contenders.items():
        first = seconds(step)
        often[name] = max(1, min(8, int(1.5 / first)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, step in contenders.items():
            step()
            times[name] += [seconds(step) for _ in range(often[name])]
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(step: Step) -> float:
    """Return the most memory a step holds beyond what was held before, in MB."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")

    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    gc.collect()
    # What the allocator keeps of earlier steps would hide what this one takes.
    ctypes.CDLL(None).malloc_trim(0)
    before = read("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return (read("VmHWM") - before) / 1024


def compare(repeats: int) -> list[dict[str, object]]:
    """Return a row per kind of input and contender."""
    batches, lengths = epoch()
    same = {"width": WIDTH, "heads": HEADS, "layers": LAYERS}
    rows = []
    for kind, steps in (("50/375/500", FULL), ("50/50/50", SHORT), ("MOSI's lengths", FULL)):
        ragged = kind == "MOSI's lengths"
        ours, parts = (batches, lengths) if ragged else ([draw(steps, DIMS, BATCH)], None)
        contenders = {
            "TDMER": tdmer_step(ours, parts),
            "TDMER, as MulT": tdmer_step(ours, parts, **same),
            **peers(steps, mosi_lengths(BATCH) if ragged else None),
        }
        if ragged:  # MulT knows no lengths: padded to the maximum, its time is that of the first.
            del contenders["MulT (MMSA)"]
        measured = turns(contenders, repeats)
        for name in ("TDMER", "TDMER, as MulT"):
            measured[name] /= len(ours)
        memory = {name: peak_memory(step) for name, step in contenders.items()}
        if ragged:
            for table, key in ((measured, "step_ms"), (memory, "peak_mb")):
                found = next(r for r in rows if r["contender"] == "MulT (MMSA)")[key]
                table["MulT (MMSA)"] = found / (1000 if key == "step_ms" else 1)
        for name, value in measured.items():
            rows.append(
                {
                    "input": kind,
                    "contender": name,
                    "step_ms": round(1000 * value, 1),
                    "faster_than_mult": round(measured["MulT (MMSA)"] / value, 1),
                    "peak_mb": round(memory[name]),
                }
            )
            print(
                "{input:15} {contender:15} {step_ms:10} ms  {faster_than_mult:7} x MulT  "
                "{peak_mb:6} MB".format(**rows[-1]),
                flush=True,
            )
    return rows


def growth() -> list[dict[str, object]]:
    """Return the time of a step of the default model against batch, length and modalities.

    Length is that of all three modalities, or of the longest, with the others in proportion as in
    MOSI (50/375/500). Beside the time stand the operations of the matrix products, which grow, too.
    """
    lengths = (63, 125, 250, 500, 1000)
    axes = {
        "batch": {b: (b, (100,) * 3) for b in (8, 16, 32, 64, 128)},
        "length": {t: (BATCH, (t,) * 3) for t in lengths},
        "length as in MOSI": {t: (BATCH, (t // 10, 3 * t // 4, t)) for t in lengths},
        "modalities": {m: (BATCH, (100,) * m) for m in (2, 3, 4, 5)},
    }
    rows = []
    for axis, settings in axes.items():
        contenders = {}
        for value, (batch, steps) in settings.items():
            dims = {f"m{i}": 32 for i in range(len(steps))}
            contenders[str(value)] = tdmer_step([draw(steps, dims, batch)])
        for value, median in turns(contenders, 5).items():
            # The operations of the kernel are not counted, those of plain products are.
            with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
                contenders[value]()
            gflop = counted.get_total_flops() / 1e9
            rows.append(
                {
                    "axis": axis,
                    "value": int(value),
                    "step_ms": round(1000 * median, 1),
                    "gflop": round(gflop, 2),
                }
            )
            print(f"{axis:18} {value:5} {1000 * median:9.1f} ms {gflop:8.2f} Gflop", flush=True)
    return rows


PARTS = {
    "attention": ("scaled_dot",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "convolution": ("convolution", "conv2d", "conv1d", "mkldnn"),
    "normalisation": ("layer_norm",),
    "dropout": ("random_", "bernoulli", "aten::ge", "feature_dropout"),
    "update": ("Optimizer", "_foreach", "addcdiv", "addcmul", "sqrt", "lerp"),
}


def parts() -> list[dict[str, object]]:
    """Return the profile of a step on 50/375/500 beside its floor, for both sizes of TDMER."""
    square = torch.randn(1024, 1024)
    large = torch.randn(2**24)
    target = torch.empty_like(large)
    rate = 2 * 1024**3 / min(seconds(lambda: square @ square) for _ in range(50))
    copied = 8 * 2**24 / min(seconds(lambda: target.copy_(large)) for _ in range(50))
    print(f"matrix product {rate / 1e9:.0f} Gflop/s, copy {copied / 1e9:.1f} GB/s")
    rows = []
    for name, options in (
        ("TDMER", {}),
        ("TDMER, as MulT", {"width": WIDTH, "heads": HEADS, "layers": LAYERS}),
    ):
        step = tdmer_step([draw(FULL, DIMS, BATCH)], **options)
        for _ in range(3):
            step()
        with profile(record_shapes=True, with_flops=True) as found:
            step()
        times, floors = (
            dict.fromkeys([*PARTS, "all else"], 0.0),
            dict.fromkeys([*PARTS, "all else"], 0.0),
        )
        for event in found.key_averages(group_by_input_shape=True):
            part = next(
                (p for p, keys in PARTS.items() if any(key in event.key for key in keys)),
                "all else",
            )
            times[part] += event.self_cpu_time_total / 1000
            sizes = [int(np.prod(shape)) for shape in event.input_shapes if shape]
            floors[part] += 1000 * event.flops / rate
            # Views take next to no time; what does reads its inputs and writes one like them.
            works = part not in ("attention", "matrix products") and sizes
            if works and event.self_cpu_time_total > 10 * event.count:
                floors[part] += 1000 * event.count * 4 * (sum(sizes) + max(sizes)) / copied
        t, a, v = FULL
        width, layers = options.get("width", 64), options.get("layers", 1)
        # Two products forward, five backward, each over all pairs of steps of an ordered pair.
        floors["attention"] = (
            1000 * 14 * BATCH * width * layers * 2 * (t * a + t * v + a * v) / rate
        )
        for part, value in times.items():
            rows.append(
                {
                    "contender": name,
                    "part": part,
                    "ms": round(value, 1),
                    "floor_ms": round(min(floors[part], value), 1),
                }
            )
            print("{contender:15} {part:16} {ms:8} ms, floor {floor_ms:8} ms".format(**rows[-1]))
    return rows


def draw_picture(rows: list[dict], grown: list[dict], path: Path) -> None:
    """Bars of the steps, and the growth on two logarithmic axes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (bars, lines) = plt.subplots(1, 2, figsize=(11, 4))
    kinds = list(dict.fromkeys(row["input"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    for i, name in enumerate(names):
        found = {row["input"]: row["step_ms"] for row in rows if row["contender"] == name}
        places = [k + 0.2 * i for k in range(len(kinds))]
        bars.bar(places, [found[kind] for kind in kinds], 0.2, label=name)
    bars.set_xticks([k + 0.3 for k in range(len(kinds))], kinds)
    bars.set(yscale="log", ylabel="ms per training step of 16", title="Step against peers")
    bars.legend(fontsize="small")
    for axis in dict.fromkeys(row["axis"] for row in grown):
        found = [row for row in grown if row["axis"] == axis]
        lines.loglog([r["value"] for r in found], [r["step_ms"] for r in found], "o-", label=axis)
    lines.set(ylabel="ms per training step", xlabel="size", title="Growth (default model)")
    lines.legend(fontsize="small")
    lines.grid(alpha=0.3, which="both")
    figure.suptitle(f"{torch.get_num_threads()} threads, {processor()}", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def processor() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), platform.machine())


def write(rows: list[dict[str, object]], path: Path) -> None:
    """Write a table, with what it ran on."""
    ran_on = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cpu": processor()}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *ran_on])
        writer.writeheader()
        writer.writerows({**row, **ran_on} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    profiled, grown, compared = parts(), growth(), compare(args.repeats)
    write(profiled, args.out / "train_step_parts.csv")
    write(grown, args.out / "train_step_growth.csv")
    write(compared, args.out / "train_step.csv")
    draw_picture(compared, grown, args.out / "train_step.png")


if __name__ == "__main__":
    main()
