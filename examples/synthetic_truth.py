"""Check what TDMER claims against synthetic data whose factors are known.

    python examples/synthetic_truth.py

1. Contributions: the label is made of one factor at a time; which part is estimated to give the
   truth the greatest probability, the common features or one modality's private ones? First without
   cross-modal attention, then with it: it hands the signal to all branches, so that the private
   features are asked before it.
2. Disentangling: how well does a linear probe find the shared and the private factors in the
   common features C and in the private features P, with all losses, without L_con and L_cp, and
   without L_dc?

The loop in `fit` is also the shortest way to train TDMER in a loop of one's own.
"""

import argparse
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tdmer import TDMER, LossTerms, Sentiment, TDMERLoss
from tdmer.data import Batch, MultimodalDataset, Synthetic, collate, make_synthetic
from tdmer.model import TDMEROutput

SIZES = {"train": 800, "test": 500}
BRANCHES = {"shared": "common", "text": "text", "audio": "audio", "video": "video"}
console = Console(width=100)


def main() -> None:
    """Run both checks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the worlds")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    check_contributions(args.epochs, "without attention", layers=0, without=("dp",))
    check_contributions(args.epochs, "with attention")
    check_disentangling(args.epochs, args.seeds)


def fit(
    data: MultimodalDataset,
    *,
    epochs: int,
    seed: int = 0,
    layers: int = 1,
    without: Collection[str] = (),
    delta: float = 5.0,
) -> tuple[TDMER, list[LossTerms]]:
    """Train TDMER on a data set of sentiment scores; return it with the mean losses by epoch.

    L_dc and L_dp weigh ten times as much as by default: L_dc makes the common features of all
    modalities agree on the label, and what they can agree on is what they share. The epochs are few
    on purpose: later the common features learn by heart what is private, too.
    """
    torch.manual_seed(seed)
    model = TDMER(
        data.dims,
        num_classes=7,
        width=32,
        layers=layers,
        dropout=0.1,
        input_dropout=0.1,
        feature_dropout=0.1,
    )
    model.fit_normalization([whole(data)])
    objective = TDMERLoss(
        Sentiment(),
        alpha=3.0,
        beta=1.0,
        delta=delta,
        epsilon=10.0,
        without=without,
    )
    loader = DataLoader(data, batch_size=100, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * len(loader)
    )
    history = []
    for _ in range(epochs):
        losses = []
        for batch in loader:
            terms = objective(model(batch.inputs, batch.masks), batch.labels)
            optimizer.zero_grad()
            terms.total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(torch.stack(list(terms)).detach())
        history.append(LossTerms(*torch.stack(losses).mean(dim=0)))
    return model.eval(), history


def whole(data: MultimodalDataset) -> Batch:
    """Return a data set as one batch."""
    return collate([data[index] for index in range(len(data))])


@torch.no_grad()
def run(model: TDMER, data: MultimodalDataset) -> TDMEROutput:
    """Return the model's output for a whole data set."""
    batch = whole(data)
    output: TDMEROutput = model(batch.inputs, batch.masks)
    return output


def check_contributions(epochs: int, title: str, **options: Any) -> None:
    """Train once per factor that makes the label; show the mean confidence of every part."""
    table = Table(title=f"Estimated true class probability, test split, {title} (greatest: *)")
    table.add_column("the label is made of")
    for branch in BRANCHES.values():
        table.add_column(branch, justify="right")
    right = 0
    for factor, branch in BRANCHES.items():
        # So much noise that what all modalities share is best seen in all of them together.
        world = make_synthetic(SIZES, factors=1, noise=3.0, steps=(2, 4), signal={factor: 1.0})
        model, _ = fit(world["train"].dataset, epochs=epochs, delta=7.0, **options)
        output = run(model, world["test"].dataset)
        private = dict(zip(model.modalities, output.private.confidence.unbind(1), strict=True))
        found = {"common": output.weights["common"], **private}
        means = {name: estimate.mean().item() for name, estimate in found.items()}
        greatest = max(means, key=lambda name: means[name])
        right += greatest == branch
        table.add_row(
            "shared factor" if factor == "shared" else f"private factor of {factor}",
            *(f"{means[b]:.3f}{'*' if b == greatest else ' '}" for b in BRANCHES.values()),
        )
    console.print(table)
    console.print(f"The part of the signal is greatest in {right} of {len(BRANCHES)}.\n")


def check_disentangling(epochs: int, seeds: Collection[int]) -> None:
    """Probe C and P for the shared and private factors, with losses and without."""
    table = Table(title=f"Share of variance that a linear probe finds (R²), {len(seeds)} seeds")
    headings = ("shared in C", "private in P", "shared in P", "private in C", "gap")
    table.add_column("losses")
    for heading in headings:
        table.add_column(heading, justify="right")
    gaps: dict[str, list[float]] = {}
    curves, ordered = [], 0
    for label, without in {
        "all": (),
        "without con, cp": ("con", "cp"),
        "without dc": ("dc",),
    }.items():
        rows = []
        for seed in seeds:
            world = make_synthetic(SIZES, factors=1, steps=(2, 4), seed=seed)
            model, history = fit(world["train"].dataset, epochs=epochs, seed=seed, without=without)
            found = probe_all(model, world["train"], world["test"])
            rows.append([*found, found[0] + found[1] - found[2] - found[3]])
            if not without:
                curves.append((history[0], history[-1]))
                ordered += found[0] > found[2] and found[1] > found[3]
        gaps[label] = [row[-1] for row in rows]
        table.add_row(label, *(f"{value:.3f}" for value in np.mean(rows, axis=0)))
    console.print(table)
    console.print("gap: (shared in C + private in P) - (shared in P + private in C). By seed:")
    for label, values in gaps.items():
        console.print(f"  {label}: " + ", ".join(f"{value:+.3f}" for value in values))
    console.print(
        "With all losses, what is shared is found better in C and what is private in P "
        f"in {ordered} of {len(seeds)} seeds."
    )
    console.print(
        "L_con, first and last epoch; L_cp, L_pp per modality or pair in the last, by seed:"
    )
    for first, last in curves:
        console.print(f"  {first.con:.3f} -> {last.con:.3f}; {last.cp / 3:.3f}, {last.pp / 3:.3f}")


def probe_all(model: TDMER, train: Synthetic, test: Synthetic) -> list[float]:
    """Return the mean R² over modalities: shared in C, private in P, shared in P, private in C."""
    outputs = [run(model, split.dataset) for split in (train, test)]

    def mean_r2(kind: str, shared: bool) -> float:
        found = []
        for name in model.modalities:
            place = model.modalities.index(name)
            features = [
                (out.common if kind == "common" else out.private).pooled[:, place]
                for out in outputs
            ]
            factors = [s.shared if shared else s.private[name] for s in (train, test)]
            found.append(probe(features[0], factors[0], features[1], factors[1]))
        return float(np.mean(found))

    return [
        mean_r2("common", shared=True),
        mean_r2("private", shared=False),
        mean_r2("private", shared=True),
        mean_r2("common", shared=False),
    ]


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Fit a ridge regression from features to a factor; return R² on other samples.

    The penalty is the mean variance of the features: a map without noise hides nothing from a
    probe without penalty, and what counts is which factor stands out.
    """
    mean = y.mean(0)
    centred, centred_test = x - x.mean(0), x_test - x.mean(0)
    penalty = len(x) * centred.var() * torch.eye(x.shape[1])
    coefficients = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (y - mean))
    errors = y_test - mean - centred_test @ coefficients
    unexplained = errors.square().sum() / (y_test - y_test.mean(0)).square().sum()
    return 1 - float(unexplained)


if __name__ == "__main__":
    main()
