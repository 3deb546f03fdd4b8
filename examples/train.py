"""Train TDMER on an MMSA pickle, or on synthetic data, with several seeds.

    python examples/train.py                       # synthetic data
    python examples/train.py --data mosi.pkl       # MMSA's layout: MOSI, MOSEI, CH-SIMS
    python examples/train.py --without con cp      # an ablation

Every choice is made on the validation split; the test split is read once per seed, with the epoch
that was best in validation. The run folder then holds config.json, epochs.csv, metrics.json,
model.safetensors (the seed that was best in validation; see predict.py) and training.png.
"""

import argparse
import copy
import csv
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tdmer
from tdmer import TDMER, Sentiment, TDMERLoss, sentiment_metrics
from tdmer.data import Batch, MultimodalDataset, Sample, collate, load_mmsa, make_synthetic
from tdmer.losses.objective import TERMS
from tdmer.metrics import bootstrap_interval

COLUMNS = {
    "mae": "MAE",
    "corr": "r",
    "acc7": "Acc7",
    "acc5": "Acc5",
    "acc2_non0": "Acc2 non0",
    "f1_non0": "F1 non0",
    "acc2_has0": "Acc2 has0",
    "f1_has0": "F1 has0",
}
console = Console()


def main() -> None:
    """Train all seeds, then write and show what came out."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    splits = load(args)
    args.out.mkdir(parents=True, exist_ok=True)
    config = {
        "data": describe_data(args),
        "model": {
            "dims": splits["train"].dims,
            "num_classes": len(args.values),
            "width": args.width,
            "heads": args.heads,
            "layers": args.layers,
            "kernel_size": args.kernel_size,
            "dropout": args.dropout,
            "input_dropout": args.input_dropout,
            "fusion": args.fusion,
        },
        "task": {"values": args.values, "l1_weight": args.l1_weight},
        "loss": {
            "alpha": args.alpha,
            "beta": args.beta,
            "gamma": args.gamma,
            "delta": args.delta,
            "without": args.without,
            "entropy_weight": args.entropy_weight,
            "samples": args.samples,
        },
        "training": {
            "seeds": args.seeds,
            "epochs": args.epochs,
            "patience": args.patience,
            "batch_size": args.batch_size,
            "lr": args.lr,
            "weight_decay": args.weight_decay,
            "clip": args.clip,
        },
        "versions": {"tdmer": tdmer.__version__, "torch": torch.__version__},
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    started = time.monotonic()
    results: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    interrupted = False
    for seed in range(args.seeds):
        result, rows, interrupted = train(seed, config, splits, torch.device(args.device))
        epochs += rows
        if result is not None:
            results.append(result)
        if interrupted:
            break
    if not results:
        raise SystemExit("Stopped before the first epoch ended: nothing to keep.")

    best = min(results, key=lambda result: result["valid"]["mae"])
    save_file(best["state"], args.out / "model.safetensors")
    write_epochs(epochs, args.out / "epochs.csv")
    summary = summarize(results, interrupted)
    summary["interval"] = interval(best, splits["test"])
    (args.out / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(epochs, summary, best["seed"], args.out / "training.png")
    show(results, summary, args.out, time.monotonic() - started)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="pickle in MMSA's layout; without it, synthetic data")
    add("--out", type=Path, default=Path("runs/latest"), help="run folder")
    add("--seeds", type=int, default=3, help="how many seeds to train, from 0")
    add("--epochs", type=int, default=12, help="most epochs per seed")
    add("--patience", type=int, default=6, help="epochs without a better validation MAE to stop at")
    add("--batch-size", type=int, default=32)
    add("--lr", type=float, default=1e-3, help="peak learning rate")
    add("--weight-decay", type=float, default=1e-2)
    add("--clip", type=float, default=1.0, help="greatest norm of the gradient")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1, help="CPU threads; this model is too small for many")
    add("--values", type=float, nargs="+", default=[-3, -2, -1, 0, 1, 2, 3], help="class values")
    model = parser.add_argument_group("model")
    model.add_argument("--width", type=int, default=64)
    model.add_argument("--heads", type=int, default=4)
    model.add_argument("--layers", type=int, default=1, help="cross-modal blocks; 0: none")
    model.add_argument("--kernel-size", type=int, default=5)
    model.add_argument("--dropout", type=float, default=0.5)
    model.add_argument("--input-dropout", type=float, default=0.6)
    model.add_argument("--fusion", choices=["tcp", "mean"], default="tcp")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--alpha", type=float, default=0.1, help="weight of con, rec")
    loss.add_argument("--beta", type=float, default=0.1, help="weight of cp, pp")
    loss.add_argument("--gamma", type=float, default=0.1, help="weight of en")
    loss.add_argument("--delta", type=float, default=5.0, help="weight of f")
    loss.add_argument("--without", nargs="*", choices=TERMS, default=[], help="terms left out")
    loss.add_argument("--entropy-weight", type=float, default=0.0, help="keeps edges apart")
    loss.add_argument("--samples", choices=["pooled", "steps"], default="pooled")
    loss.add_argument("--l1-weight", type=float, default=0.5, help="weight of the absolute error")
    return parser.parse_args()


def load(args: argparse.Namespace) -> dict[str, MultimodalDataset]:
    """Return the train, valid and test split."""
    if args.data is not None:
        return load_mmsa(args.data)
    world = make_synthetic({"train": 800, "valid": 200, "test": 400}, missing=0.1)
    return {split: drawn.dataset for split, drawn in world.items()}


def describe_data(args: argparse.Namespace) -> dict[str, str]:
    """Name the data, so that a run can be told from one on other data."""
    if args.data is None:
        return {"name": "synthetic"}
    with args.data.open("rb") as file:
        return {"name": args.data.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def train(
    seed: int,
    config: dict[str, Any],
    splits: dict[str, MultimodalDataset],
    device: torch.device,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]], bool]:
    """Train one seed; return its result (None without a full epoch), its epochs, if interrupted."""
    options = config["training"]
    torch.manual_seed(seed)
    task = Sentiment(**config["task"])
    objective = TDMERLoss(task, **config["loss"]).to(device)
    model = TDMER(**config["model"])
    shuffled = DataLoader(splits["train"], options["batch_size"], shuffle=True, collate_fn=collate)
    damaged = model.to(device).fit_normalization(in_order(splits["train"]))
    for modality, count in damaged.items():
        if count and seed == 0:
            console.print(f"{modality}: {count} NaN or infinite entries count as the mean")

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"]
    )
    steps = options["epochs"] * len(shuffled)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options["lr"], total_steps=steps, pct_start=0.1
    )
    rows: list[dict[str, Any]] = []
    best: dict[str, Any] | None = None
    best_state: dict[str, Tensor] | None = None
    interrupted = False
    columns = [
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"seed {seed}", total=steps)
        try:
            for epoch in range(options["epochs"]):
                model.train()
                sums: dict[str, float] = {}
                for batch in shuffled:
                    batch = to_device(batch, device)
                    terms = objective(model(batch.inputs, batch.masks), batch.labels)
                    optimizer.zero_grad()
                    terms.total.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), options["clip"])
                    optimizer.step()
                    scheduler.step()
                    progress.advance(bar)
                    for name, value in terms._asdict().items():
                        sums[name] = sums.get(name, 0.0) + value.item() * len(batch.ids)
                losses = {name: value / len(splits["train"]) for name, value in sums.items()}
                valid, weights, _ = evaluate(model, task, splits["valid"])
                rows.append({"seed": seed, "epoch": epoch, **losses, **valid, **weights})
                progress.console.print(
                    f"seed {seed}  epoch {epoch:2d}  loss {losses['total']:7.3f}  "
                    f"valid MAE {valid['mae']:.3f}  r {valid['corr']:.3f}  "
                    f"Acc2 non0 {100 * valid['acc2_non0']:.1f}",
                    highlight=False,
                )
                if best is None or valid["mae"] < best["valid"]["mae"]:
                    best = {"seed": seed, "epoch": epoch, "valid": valid}
                    best_state = copy.deepcopy(model.state_dict())
                elif epoch - best["epoch"] >= options["patience"]:
                    break
        except KeyboardInterrupt:
            interrupted = True
            progress.console.print("Stopped: keeping what there is.")
    if best is None or best_state is None:
        return None, rows, interrupted
    model.load_state_dict(best_state)
    test, weights, predictions = evaluate(model, task, splits["test"])
    result = {**best, "test": test, "weights": weights}
    return {**result, "state": best_state, "predictions": predictions}, rows, interrupted


def in_order(data: MultimodalDataset) -> DataLoader[Sample]:
    """Go through a split without shuffling."""
    return DataLoader(data, batch_size=128, collate_fn=collate)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    inputs, masks = ({m: x.to(device) for m, x in part.items()} for part in batch[:2])
    return Batch(inputs, masks, batch.labels.to(device), batch.ids)


@torch.no_grad()
def evaluate(
    model: TDMER, task: Sentiment, data: MultimodalDataset
) -> tuple[dict[str, float], dict[str, float], Tensor]:
    """Return the metrics of a split, the mean fusion weight of every branch, the predictions."""
    model.eval()
    device = next(model.parameters()).device
    predictions: list[Tensor] = []
    weights: list[dict[str, Tensor]] = []
    for batch in in_order(data):
        batch = to_device(batch, device)
        output = model(batch.inputs, batch.masks)
        predictions.append(task.predict(output.logits))
        weights.append(output.weights)
    means = {
        f"weight_{branch}": torch.cat([batch[branch] for batch in weights]).mean().item()
        for branch in weights[0]
    }
    joined = torch.cat(predictions).cpu()
    return sentiment_metrics(joined, data.labels), means, joined


def summarize(results: list[dict[str, Any]], interrupted: bool) -> dict[str, Any]:
    """Mean and standard deviation (ddof 1) of every metric over the seeds, and each seed's."""

    def over_seeds(key: str) -> dict[str, dict[str, float | None]]:
        columns = {name: [result[key][name] for result in results] for name in results[0][key]}
        return {
            name: {
                "mean": statistics.fmean(column),
                "sd": statistics.stdev(column) if len(column) > 1 else None,
            }
            for name, column in columns.items()
        }

    kept = ("seed", "epoch", "valid", "test", "weights")
    seeds = [{key: result[key] for key in kept} for result in results]
    return {
        "test": over_seeds("test"),
        "valid": over_seeds("valid"),
        "weights": over_seeds("weights"),
        "seeds": seeds,
        "interrupted": interrupted,
    }


def interval(best: dict[str, Any], data: MultimodalDataset) -> dict[str, Any]:
    """95 % bootstrap intervals over the test samples, for the model that is kept."""
    bounds = {
        name: bootstrap_interval(best["predictions"], data.labels, metric=name)
        for name in best["test"]
    }
    return {"seed": best["seed"], "level": 0.95, "test": bounds}


def write_epochs(rows: list[dict[str, Any]], path: Path) -> None:
    """Write one line per seed and epoch: training losses, validation metrics, fusion weights."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: list[dict[str, Any]], summary: dict[str, Any], seed: int, path: Path) -> None:
    """Draw the losses, the validation metrics and the fusion weights of one seed."""
    rows = [row for row in rows if row["seed"] == seed]
    epochs = [row["epoch"] for row in rows]
    chosen = next(result["epoch"] for result in summary["seeds"] if result["seed"] == seed)
    figure, (losses, metrics, weights) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for name in ("task", *TERMS):
        values = [row[name] for row in rows]
        if any(values):
            losses.plot(epochs, values, label=name)
    losses.set(title="Training losses (unweighted)", xlabel="epoch", yscale="log")
    for name in ("mae", "corr", "acc2_non0", "acc7"):
        metrics.plot(epochs, [row[name] for row in rows], label=COLUMNS[name])
    metrics.set(title="Validation", xlabel="epoch")
    for name in rows[0]:
        if name.startswith("weight_"):
            weights.plot(epochs, [row[name] for row in rows], label=name.removeprefix("weight_"))
    weights.set(title="Mean fusion weight per branch (validation)", xlabel="epoch", ylim=(0, None))
    for axes in (losses, metrics, weights):
        axes.axvline(chosen, color="0.7", linestyle="--", zorder=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, frameon=False)
    figure.suptitle(f"Seed {seed}; the dashed line is the chosen epoch, {chosen}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def show(
    results: list[dict[str, Any]], summary: dict[str, Any], folder: Path, seconds: float
) -> None:
    """Print the test metrics of every seed, their mean, and where things are."""
    table = Table(title=f"Test split, {len(results)} seed(s); accuracies and F1 in %")
    table.add_column("seed")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")

    def cell(name: str, value: float) -> str:
        return f"{value:.3f}" if name in ("mae", "corr") else f"{100 * value:.1f}"

    for result in results:
        table.add_row(str(result["seed"]), *(cell(name, result["test"][name]) for name in COLUMNS))
    table.add_section()
    for kind, label in (("mean", "mean"), ("sd", "± sd")):
        values = [summary["test"][name][kind] for name in COLUMNS]
        cells = ["-" if v is None else cell(n, v) for n, v in zip(COLUMNS, values, strict=True)]
        table.add_row(label, *cells, style="bold" if kind == "mean" else None)
    console.print(table)
    weights = {name: entry["mean"] for name, entry in summary["weights"].items()}
    ranked = sorted(weights.items(), key=lambda item: -item[1])
    console.print(
        "Mean fusion weights: "
        + ", ".join(f"{name.removeprefix('weight_')} {value:.2f}" for name, value in ranked)
    )
    console.print(f"{seconds:.0f} s in all. Picture: {folder / 'training.png'}", soft_wrap=True)


if __name__ == "__main__":
    main()
