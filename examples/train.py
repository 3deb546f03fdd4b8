"""Train TDMER on an MMSA pickle, a store or synthetic data, with several seeds.

    python examples/train.py                       # synthetic data
    python examples/train.py --data mosi.pkl       # MMSA's layout: MOSI, MOSEI, CH-SIMS
    python examples/train.py --data mosei          # a folder that tdmer.data.write_store made
    python examples/train.py --without con cp      # an ablation
    python examples/train.py --resume              # go on where a run was cut short

Every choice is made on the validation split; the test split is read with the epoch that was best
in validation alone: whole, and with each modality left out. The run folder then holds config.json,
epochs.csv, metrics.json, model.safetensors (the seed that was best in validation; see predict.py)
and training.png.

A run that is not finished has a checkpoint.safetensors in its folder, written after every epoch.
--resume continues from it, with the same options, to the same weights and figures bit for bit as if
the run had not been cut short. Without --resume such a folder is left alone, unless --overwrite
gives the run up. A finished run has no checkpoint: it is replaced by the next run in its folder,
and --resume trains nothing.
"""

import argparse
import copy
import csv
import functools
import hashlib
import io
import json
import math
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tdmer
from tdmer import TDMER, Sentiment, TDMERLoss, sentiment_metrics
from tdmer.data import (
    Batch,
    MultimodalDataset,
    Sample,
    collate,
    load_mmsa,
    make_synthetic,
    open_store,
)
from tdmer.metrics import bootstrap_interval
from tdmer.objective import TERMS

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
CHECKPOINT = "checkpoint.safetensors"
FORMAT = "tdmer-train-1"  # of the checkpoint: another number where its content changes
OUTPUTS = ("config.json", "epochs.csv", "metrics.json", "model.safetensors", "training.png")
console = Console()


def main() -> None:
    """Train all seeds, then write and show what came out."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    try:
        splits = load(args.data)
        config = configure(args, splits)
        build(config)  # a wrong option stops here, before a file is touched
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"train.py: {error}") from None
    run = begin(args, config)
    if not run["rows"]:
        for name in OUTPUTS:
            (args.out / name).unlink(missing_ok=True)
    write(args.out / "config.json", to_json(config))

    started = time.monotonic()
    interrupted = False
    for seed in range(len(run["results"]), args.seeds):
        interrupted = train(seed, run, splits, args.out)
        if interrupted:
            break
    if not run["results"]:
        (args.out / CHECKPOINT).unlink()
        raise SystemExit("Stopped before the first epoch ended: nothing to keep.")

    kept = run["kept"]
    summary = summarize(run["results"], interrupted)
    summary["interval"] = interval(kept, splits["test"])
    write(args.out / "model.safetensors", save(kept["weights"]))
    write(args.out / "epochs.csv", epochs_csv(run["rows"]))
    write(args.out / "metrics.json", to_json(summary))
    write(args.out / "training.png", draw(run["rows"], summary, kept["seed"]))
    if not interrupted:
        (args.out / CHECKPOINT).unlink()
    show(summary, args.out, time.monotonic() - started)


def configure(
    args: argparse.Namespace, splits: dict[str, MultimodalDataset]
) -> dict[str, dict[str, Any]]:
    """Gather all that the figures depend on."""
    return {
        "data": describe_data(args.data),
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
            "modality_dropout": args.modality_dropout,
            "device": args.device,
            "threads": args.threads,
        },
        "versions": {
            "tdmer": tdmer.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="pickle in MMSA's layout or store; without it, synthetic data")
    add(
        "--out",
        type=Path,
        default=Path("runs/latest"),
        help="run folder; a finished run there is replaced",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on with the unfinished run in the run folder, if there is one",
    )
    again.add_argument(
        "--overwrite", action="store_true", help="give up an unfinished run in the run folder"
    )
    add("--seeds", type=count, default=3, help="how many seeds to train, from 0")
    add("--epochs", type=count, default=12, help="most epochs per seed")
    add(
        "--patience",
        type=count,
        default=6,
        help="epochs without a better validation MAE to stop at",
    )
    add("--batch-size", type=count, default=32)
    add("--lr", type=amount, default=1e-3, help="peak learning rate")
    add("--weight-decay", type=amount, default=1e-2)
    add("--clip", type=amount, default=1.0, help="greatest norm of the gradient")
    add(
        "--modality-dropout",
        type=share,
        default=0.0,
        help="how often a modality of a training sample is left out",
    )
    cuda = torch.cuda.is_available()
    add("--device", choices=["cpu", "cuda"] if cuda else ["cpu"], default="cuda" if cuda else "cpu")
    add("--threads", type=count, default=1, help="CPU threads; this model is too small for many")
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


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def amount(text: str) -> float:
    """Read a finite number of at least 0."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text}")
    return float(text)


def share(text: str) -> float:
    """Read a number of at least 0 and below 1."""
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {text}")
    return float(text)


def load(path: Path | None) -> dict[str, MultimodalDataset]:
    """Return the train, valid and test split."""
    if path is None:
        world = make_synthetic({"train": 800, "valid": 200, "test": 400}, missing=0.1)
        return {split: drawn.dataset for split, drawn in world.items()}
    splits = open_store(path) if path.is_dir() else load_mmsa(path)
    if not {"train", "valid", "test"} <= splits.keys():
        raise ValueError(f"{path} must have splits train, valid and test, got {list(splits)}")
    return splits


def describe_data(path: Path | None) -> dict[str, Any]:
    """Name the data, so that a run can be told from one on other data."""

    def sha256(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    if path is None:
        return {"name": "synthetic"}
    if path.is_dir():
        return {
            "name": path.name,
            "sha256": {file.name: sha256(file) for file in sorted(path.iterdir())},
        }
    return {"name": path.name, "sha256": sha256(path)}


def begin(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Return the run to train: a new one, or the one that was cut short."""
    path, finished = args.out / CHECKPOINT, args.out / "metrics.json"
    if path.exists() and not args.overwrite:
        if not args.resume:
            raise SystemExit(
                f"train.py: {args.out} holds an unfinished run: --resume goes on with it, "
                "--overwrite gives it up, --out takes another folder"
            )
        run = read_checkpoint(path)
        refuse_changes(path, run["config"], config)
        epochs = run["current"]["epochs"] if run["current"] else 0
        console.print(f"{path}: going on with seed {len(run['results'])}, epoch {epochs}")
        return run
    if finished.exists() and args.resume:
        path = args.out / "config.json"
        try:
            refuse_changes(path, json.loads(path.read_text()), config)
        except (AttributeError, OSError, ValueError) as error:
            raise SystemExit(f"train.py: {path} cannot be read: {error}") from None
        console.print(f"The run in {args.out} is finished.", soft_wrap=True)
        raise SystemExit(0)
    run = {"config": config, "rows": [], "results": [], "kept": None, "current": None}
    save_checkpoint(run, args.out)
    return run


def refuse_changes(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Stop where the options, data or versions are not those of the run that is there."""
    changes = []
    for section in sorted(old.keys() | new.keys()):
        one, two = old.get(section, {}), new.get(section, {})
        for name in sorted(one.keys() | two.keys()):
            if one.get(name) != two.get(name):
                changes.append(f"{section}.{name} was {one.get(name)!r}, is {two.get(name)!r}")
    if changes:
        raise SystemExit(
            f"train.py: {path} is of another run: {'; '.join(changes)}. "
            "Give the same options, or another --out"
        )


def save_checkpoint(run: dict[str, Any], folder: Path) -> None:
    """Write the whole state of the run: tensors as tensors, all else as JSON beside them."""
    tensors: dict[str, Tensor] = {}
    state = json.dumps(pack(run, tensors))
    metadata = {"format": FORMAT, "state": state, "sha256": checksum(state, tensors)}
    write(folder / CHECKPOINT, save(tensors, metadata))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of a run, or stop where the file is not as it was written."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SystemExit(
            f"train.py: {path} cannot be read: {error}. --overwrite starts anew"
        ) from None
    if metadata.get("format") != FORMAT:
        raise SystemExit(
            f"train.py: {path} must be of format {FORMAT!r}, got "
            f"{metadata.get('format')!r}. --overwrite starts anew"
        )
    if metadata.get("sha256") != checksum(metadata.get("state", ""), tensors):
        raise SystemExit(
            f"train.py: {path} is damaged: its checksum is wrong. --overwrite starts anew"
        )
    run: dict[str, Any] = unpack(json.loads(metadata["state"]), tensors)
    return run


def pack(value: Any, tensors: dict[str, Tensor], name: str = "run") -> Any:
    """Move every tensor into ``tensors``, and leave its name in its place."""
    if isinstance(value, Tensor):
        tensors[name] = value.cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: pack(entry, tensors, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [pack(entry, tensors, f"{name}.{place}") for place, entry in enumerate(value)]
    return value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors back."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: unpack(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [unpack(entry, tensors) for entry in value]
    return value


def checksum(state: str, tensors: dict[str, Tensor]) -> str:
    """Hash all that a checkpoint holds."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def generators() -> dict[str, Any]:
    """Return the states of all generators that training may draw from."""
    algorithm, words, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [algorithm, words.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_generators(states: dict[str, Any]) -> None:
    """Set all generators to the states that :func:`generators` returned."""
    version, numbers, pending = states["python"]
    random.setstate((version, tuple(numbers), pending))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])


def write(path: Path, content: bytes) -> None:
    """Write a file so that whatever happens leaves the old content or the new, whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):  # where folders can be opened, so that the name lasts, too
            folder = os.open(path.parent, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SystemExit(
            f"train.py: {path} could not be written: {error.strerror}. What stood there before is "
            "unharmed: mend this, then --resume"
        ) from None


def build(config: dict[str, Any]) -> tuple[TDMER, Sentiment, TDMERLoss]:
    """Make the model, the task and the objective."""
    task = Sentiment(**config["task"])
    return TDMER(**config["model"]), task, TDMERLoss(task, **config["loss"])


def train(
    seed: int, run: dict[str, Any], splits: dict[str, MultimodalDataset], folder: Path
) -> bool:
    """Train one seed, or the rest of it, and add its result to the run; return if interrupted."""
    options = run["config"]["training"]
    device = torch.device(options["device"])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, the generator that code on the way may draw from
    torch.manual_seed(seed)
    model, task, objective = build(run["config"])
    model, objective = model.to(device), objective.to(device)
    shuffled = DataLoader(
        splits["train"],
        options["batch_size"],
        shuffle=True,
        collate_fn=functools.partial(collate, modality_dropout=options["modality_dropout"]),
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"]
    )
    steps = options["epochs"] * len(shuffled)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options["lr"], total_steps=steps, pct_start=0.1
    )
    best: dict[str, Any] | None = None
    first = 0
    if run["current"] is None:
        damaged = model.fit_normalization(in_order(splits["train"]))
        for modality, entries in damaged.items():
            if entries and seed == 0:
                console.print(f"{modality}: {entries} NaN or infinite entries count as the mean")
    else:
        current = run["current"]
        first, best = current["epochs"], current["best"]
        model.load_state_dict(current["model"])
        states = current["optimizer"]["state"]
        current["optimizer"]["state"] = {int(index): state for index, state in states.items()}
        optimizer.load_state_dict(current["optimizer"])
        scheduler.load_state_dict(current["scheduler"])
        set_generators(current["generators"])

    interrupted = False
    columns = [
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"seed {seed}", total=steps, completed=first * len(shuffled))
        try:
            for epoch in range(first, options["epochs"]):
                if best is not None and epoch - best["epoch"] > options["patience"]:
                    break
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
                if not math.isfinite(losses["total"]):
                    raise SystemExit(
                        f"train.py: the loss of seed {seed} is {losses['total']} in epoch {epoch}; "
                        "a smaller --lr or --clip may keep it finite"
                    )
                valid, weights, _ = evaluate(model, task, splits["valid"])
                run["rows"].append({"seed": seed, "epoch": epoch, **losses, **valid, **weights})
                progress.console.print(
                    f"seed {seed}  epoch {epoch:2d}  loss {losses['total']:7.3f}  "
                    f"valid MAE {valid['mae']:.3f}  r {valid['corr']:.3f}  "
                    f"Acc2 non0 {100 * valid['acc2_non0']:.1f}",
                    highlight=False,
                )
                if best is None or valid["mae"] < best["valid"]["mae"]:
                    best = {
                        "epoch": epoch,
                        "valid": valid,
                        "weights": copy.deepcopy(model.state_dict()),
                    }
                run["current"] = {
                    "epochs": epoch + 1,
                    "best": best,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "generators": generators(),
                }
                save_checkpoint(run, folder)
        except KeyboardInterrupt:
            interrupted = True
            progress.console.print("Stopped: keeping what there is; --resume goes on.")
    if best is None:
        return interrupted
    model.load_state_dict(best["weights"])
    test, weights, predictions = evaluate(model, task, splits["test"])
    missing = {
        modality: evaluate(model, task, splits["test"], without=modality)[0]
        for modality in model.modalities
    }
    result = {"seed": seed, "epoch": best["epoch"], "valid": best["valid"], "test": test}
    run["results"].append({**result, "missing": missing, "weights": weights})
    if run["kept"] is None or best["valid"]["mae"] < run["kept"]["valid"]["mae"]:
        run["kept"] = {**result, "weights": best["weights"], "predictions": predictions}
    run["current"] = None
    if not interrupted:
        save_checkpoint(run, folder)
    return interrupted


def in_order(data: MultimodalDataset) -> DataLoader[Sample]:
    """Go through a split without shuffling."""
    return DataLoader(data, batch_size=128, collate_fn=collate)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    inputs, masks = ({m: x.to(device) for m, x in part.items()} for part in batch[:2])
    return Batch(inputs, masks, batch.labels.to(device), batch.ids)


@torch.no_grad()
def evaluate(
    model: TDMER, task: Sentiment, data: MultimodalDataset, without: str | None = None
) -> tuple[dict[str, float], dict[str, float], Tensor]:
    """Return the metrics of a split, the mean fusion weight of every branch, the predictions."""
    model.eval()
    device = next(model.parameters()).device
    predictions: list[Tensor] = []
    weights: list[dict[str, Tensor]] = []
    for batch in in_order(data):
        batch = to_device(batch, device)
        inputs = {m: x for m, x in batch.inputs.items() if m != without}
        output = model(inputs, {m: batch.masks[m] for m in inputs})
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

    def over_seeds(metrics: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
        columns = {name: [entry[name] for entry in metrics] for name in metrics[0]}
        return {
            name: {
                "mean": statistics.fmean(column),
                "sd": statistics.stdev(column) if len(column) > 1 else None,
            }
            for name, column in columns.items()
        }

    def each(key: str) -> list[dict[str, Any]]:
        return [result[key] for result in results]

    return {
        "test": over_seeds(each("test")),
        "missing": {
            modality: over_seeds([metrics[modality] for metrics in each("missing")])
            for modality in results[0]["missing"]
        },
        "valid": over_seeds(each("valid")),
        "weights": over_seeds(each("weights")),
        "seeds": results,
        "interrupted": interrupted,
    }


def interval(kept: dict[str, Any], data: MultimodalDataset) -> dict[str, Any]:
    """95 % bootstrap intervals over the test samples, for the model that is kept."""
    bounds = {
        name: bootstrap_interval(kept["predictions"], data.labels, metric=name)
        for name in kept["test"]
    }
    return {"seed": kept["seed"], "level": 0.95, "test": bounds}


def to_json(content: dict[str, Any]) -> bytes:
    """Format a JSON file; JSON has no NaN: what is undefined is null."""
    return f"{json.dumps(finite(content), indent=2, allow_nan=False)}\n".encode()


def finite(content: Any) -> Any:
    """Put None in the place of every number that is not finite."""
    if isinstance(content, dict):
        return {name: finite(entry) for name, entry in content.items()}
    if isinstance(content, list | tuple):
        return [finite(entry) for entry in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def epochs_csv(rows: list[dict[str, Any]]) -> bytes:
    """One line per seed and epoch: training losses, validation metrics, fusion weights."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def draw(rows: list[dict[str, Any]], summary: dict[str, Any], seed: int) -> bytes:
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
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture.getvalue()


def show(summary: dict[str, Any], folder: Path, seconds: float) -> None:
    """Print the test metrics of every seed, their mean, and where things are."""
    table = Table(title=f"Test split, {len(summary['seeds'])} seed(s); accuracies and F1 in %")
    table.add_column("seed", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")

    def add(label: str, metrics: dict[str, float | None], style: str | None = None) -> None:
        cells = []
        for name in COLUMNS:
            value = metrics[name]
            percent = name not in ("mae", "corr")
            cells.append(
                "-" if value is None else f"{100 * value:.1f}" if percent else f"{value:.3f}"
            )
        table.add_row(label, *cells, style=style)

    for result in summary["seeds"]:
        add(str(result["seed"]), result["test"])
    table.add_section()
    add("mean", {name: entry["mean"] for name, entry in summary["test"].items()}, "bold")
    add("± sd", {name: entry["sd"] for name, entry in summary["test"].items()})
    table.add_section()
    for modality, metrics in summary["missing"].items():
        add(f"no {modality}", {name: entry["mean"] for name, entry in metrics.items()})
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
