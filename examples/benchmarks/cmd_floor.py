"""What CMD scores for two samples of one distribution, and what lowers that floor.

Features are the sigmoid of a normal, 128 wide unless the axis says otherwise; the second sample is
shifted by 0 (the score should be 0) or by half a standard deviation (it should be that of samples
without number). Run from the root of the repository:

    python examples/benchmarks/cmd_floor.py
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from tdmer.losses import central_moments, cmd_loss, corrected_cmd_loss, merge_moments

SHIFTS = (0.0, 0.5)
STEPS = 20
# Share of a step's variance that its whole utterance has in common.
COMMON = 0.5


def draw(n: int, d: int, shift: float, generator: torch.Generator) -> Tensor:
    """A batch of pooled features."""
    return (torch.randn(n, d, generator=generator) + shift).sigmoid()


def draw_steps(n: int, d: int, shift: float, generator: torch.Generator) -> Tensor:
    """A batch of sequences, each step distributed as a pooled feature of :func:`draw`."""
    utterance = torch.randn(n, 1, d, generator=generator)
    steps = torch.randn(n, STEPS, d, generator=generator)
    return (COMMON**0.5 * utterance + (1 - COMMON) ** 0.5 * steps + shift).sigmoid()


def pooled(n: int, d: int, shift: float, generator: torch.Generator) -> Tensor:
    """The loss as the paper has it."""
    return cmd_loss(draw(n, d, 0.0, generator), draw(n, d, shift, generator))


def eight_processes(n: int, d: int, shift: float, generator: torch.Generator) -> Tensor:
    """Moments reduced over eight processes: those of eight batches."""
    return pooled(8 * n, d, shift, generator)


def steps(n: int, d: int, shift: float, generator: torch.Generator) -> Tensor:
    """Moments of all steps, of which those of one utterance resemble each other."""
    return cmd_loss(draw_steps(n, d, 0.0, generator), draw_steps(n, d, shift, generator))


def memory(n: int, d: int, shift: float, generator: torch.Generator) -> Tensor:
    """Moments of this batch merged with those of nine earlier ones."""
    sides = []
    for offset in (0.0, shift):
        batches = [central_moments(draw(n, d, offset, generator)) for _ in range(10)]
        sides.append(merge_moments(torch.stack(batches), torch.ones(10)))
    return torch.linalg.vector_norm(sides[0] - sides[1], dim=1).sum()


def corrected(n: int, d: int, shift: float, generator: torch.Generator) -> Tensor:
    """The distance of every order less what chance explains."""
    return corrected_cmd_loss(draw(n, d, 0.0, generator), draw(n, d, shift, generator))


ESTIMATES: dict[str, Callable[[int, int, float, torch.Generator], Tensor]] = {
    "pooled batch": pooled,
    "steps (20, half their variance common)": steps,
    "eight processes": eight_processes,
    "memory of ten batches": memory,
    "corrected": corrected,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = []

    def record(name: str, n: int, d: int, shift: float) -> float:
        values = torch.stack([ESTIMATES[name](n, d, shift, generator) for _ in range(args.draws)])
        mean, deviation = values.mean().item(), values.std().item()
        rows.append([name, n, d, shift, f"{mean:.4f}", f"{deviation:.4f}"])
        return mean

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (floor, remedies) = plt.subplots(1, 2, figsize=(10, 4))
    sizes = [4, 8, 16, 32, 64, 128, 256, 1024, 4096]
    for d in (8, 32, 128, 512):
        floor.plot(
            sizes, [record("pooled batch", n, d, 0.0) for n in sizes], "o-", label=f"d = {d}"
        )
    floor.set_title("two samples of one distribution")
    sizes = [4, 8, 16, 32, 64, 128, 256]
    limit = {shift: pooled(100_000, 128, shift, generator).item() for shift in SHIFTS}
    for name in ESTIMATES:
        means = {shift: [record(name, n, 128, shift) for n in sizes] for shift in SHIFTS}
        (line,) = remedies.plot(sizes, means[0.0], "o-", label=name)
        remedies.plot(sizes, means[0.5], "s--", color=line.get_color())
    remedies.axhline(limit[0.5], color="black", linewidth=0.8)
    remedies.set_title("d = 128; dashed: a shift of 0.5, black: its limit")
    rows += [["no floor", 100_000, 128, shift, f"{limit[shift]:.4f}", ""] for shift in SHIFTS]
    for axes in (floor, remedies):
        axes.set(xscale="log", xlabel="n, samples on each side", ylabel="CMD, K = 5")
        axes.legend(fontsize="small")
    floor.set(yscale="log")
    figure.tight_layout()
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "cmd_floor.png", dpi=120)
    with (args.out / "cmd_floor.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["estimate", "n", "d", "shift", "mean", "standard_deviation"])
        writer.writerows(rows)
    for row in rows:
        print(*row, sep="\t")


if __name__ == "__main__":
    main()
