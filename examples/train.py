"""Train TDMER with one seed; experiments/seeds.py trains several and compares them.

    python examples/train.py                       # synthetic data
    python examples/train.py --data mosi.pkl       # MMSA's layout: MOSI, MOSEI, CH-SIMS
    python examples/train.py --data mosei          # a folder that tdmer.data.write_store made
    python examples/train.py --without con cp      # an ablation
    python examples/train.py --resume              # go on where a run was cut short
    torchrun --nproc-per-node 2 examples/train.py  # several processes; or accelerate launch

Every choice is made on the validation split; the test split is read once, with the epoch that was
best there. The run folder then holds config.json, metrics.json and model.safetensors. Until then it
holds checkpoint.pt, written after every epoch. What an epoch draws at random depends on the seed,
the epoch and the process alone, so that --resume, with the same options, ends a run that was killed
at any moment in the same weights and figures bit for bit.
"""

import argparse
import functools
import math
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate.utils import DataLoaderConfiguration, set_seed
from options import add_arguments, number, take_arguments
from run_folder import RunFolder
from splits import check_training, fingerprint, load_splits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

import tdmer
from tdmer import TDMER, LossTerms, Sentiment, TDMERLoss, sentiment_metrics
from tdmer.data import MultimodalDataset, collate
from tdmer.objective import TERMS


def main() -> None:
    """Train, and say in one line what is wrong with a file or an option."""
    args = parse_args()
    try:
        train(args)
    except KeyboardInterrupt:
        raise SystemExit("train.py: stopped; --resume goes on after the last epoch") from None
    except (OSError, TypeError, ValueError) as error:
        speaks = accelerate.PartialState().is_main_process
        raise SystemExit(f"train.py: {error}" if speaks else 1) from None


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="pickle in MMSA's layout or store; without it, synthetic data")
    add("--out", type=Path, default=Path("runs/latest"), help="run folder")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    again.add_argument("--overwrite", action="store_true", help="give up an unfinished run there")
    add("--seed", type=number(int), default=0)
    add("--epochs", type=number(int, 1), default=12, help="most epochs")
    add("--patience", type=number(int, 1), default=6, help="epochs without a better one to stop at")
    add("--batch-size", type=number(int, 1), default=32, help="of all processes together")
    add("--accumulate", type=number(int, 1), default=1, help="batches per step of the optimizer")
    add("--lr", type=number(float, below=1e6), default=1e-3, help="peak learning rate")
    add("--weight-decay", type=number(float, below=1e6), default=1e-2)
    add("--clip", type=number(float, below=1e6), default=1.0, help="greatest norm of the gradient")
    add("--modality-dropout", type=number(float, below=1), default=0.0, help="share left out")
    add("--precision", choices=["no", "bf16"], default="no", help="mixed precision")
    add("--cpu", action="store_true", help="use no accelerator")
    add("--threads", type=number(int, 1), default=1, help="CPU threads per process")
    add("--values", type=float, nargs="+", default=[-3, -2, -1, 0, 1, 2, 3], help="class values")
    add("--l1-weight", type=float, default=0.5, help="weight of the absolute error in the task")
    add("--without", nargs="*", choices=TERMS, default=[], help="terms of the loss to leave out")
    for part in (TDMER, TDMERLoss):
        add_arguments(parser, part)
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    """Prepare, go through the epochs, and read the test split once."""
    torch.set_num_threads(args.threads)
    accelerator = accelerate.Accelerator(
        cpu=args.cpu or not torch.accelerator.is_available(),
        mixed_precision=args.precision,
        gradient_accumulation_steps=args.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # A term that is left out leaves parameters without a gradient.
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)],
    )

    task = Sentiment(args.values, l1_weight=args.l1_weight)
    data = load_splits(args.data, task)
    check_training(data, task)
    shuffle = torch.Generator()
    augment = functools.partial(collate, modality_dropout=args.modality_dropout)
    loader = DataLoader(data["train"], args.batch_size, True, generator=shuffle, collate_fn=augment)

    places = ("data", "out", "resume", "overwrite")
    options = {name: value for name, value in vars(args).items() if name not in places}
    sizes = {"dims": data["train"].dims, "num_classes": task.num_classes}
    where = {"device": accelerator.device.type, "processes": accelerator.num_processes}
    config: dict[str, Any] = {
        "data": fingerprint(args.data),
        "model": sizes | take_arguments(options, TDMER),
        "task": take_arguments(options, Sentiment),
        "loss": take_arguments(options, TDMERLoss),
        "training": options | where,
        "versions": {p.__name__: p.__version__ for p in (tdmer, torch, np, accelerate)},
    }
    set_seed(args.seed)
    network = TDMER(**config["model"])
    # The terms of several processes are those of the whole batch.
    group = torch.distributed.group.WORLD if accelerator.num_processes > 1 else None
    objective = TDMERLoss(task, **config["loss"], group=group).to(accelerator.device)
    unusable = network.fit_normalization(DataLoader(data["train"], 128, collate_fn=collate))
    optimizer = torch.optim.AdamW(network.parameters(), args.lr, weight_decay=args.weight_decay)
    steps = args.epochs * math.ceil(len(loader) / args.accumulate)
    scheduler = OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer, "scheduler": scheduler}
    model, optimizer, scheduler, loader = accelerator.prepare(*parts.values(), loader)

    run = RunFolder(args.out, config, resume=args.resume, overwrite=args.overwrite)
    if run.finished:
        accelerator.print(f"The run in {args.out} is finished.")
        return
    history: list[dict[str, Any]] = run.state.get("history", [])
    best, best_weights = run.state.get("best", {}), run.state.get("best_weights", {})
    if history:
        for name, part in parts.items():
            part.load_state_dict(run.state[name])
    accelerator.print(
        f"{args.out}, from epoch {len(history)}; entries that are no number: {unusable}"
    )

    for epoch in range(len(history), args.epochs):
        if best and epoch - best["epoch"] > args.patience:
            break
        # An epoch draws from generators of its own, so that a checkpoint needs no state of theirs.
        sequence = np.random.SeedSequence((args.seed, epoch))
        seeds = sequence.generate_state(1 + accelerator.num_processes).tolist()
        shuffle.manual_seed(seeds[0])
        set_seed(seeds[1 + accelerator.process_index])
        model.train()
        sums = torch.zeros(len(LossTerms._fields) + 1, device=accelerator.device)
        for batch in loader:
            with accelerator.accumulate(model):
                terms = objective(model(batch.inputs, batch.masks), batch.labels)
                accelerator.backward(terms.total)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            # Terms are means over samples, of all processes; the number of samples comes last.
            sums += len(batch.labels) * torch.stack([*terms, torch.ones_like(terms.total)]).detach()
        *totals, samples = sums.tolist()
        losses = {name: x / samples for name, x in zip(LossTerms._fields, totals, strict=True)}
        if not math.isfinite(losses["total"]):
            raise ValueError(f"the loss is {losses['total']} in epoch {epoch}: try a smaller --lr")
        valid, weights = evaluate(network, task, data["valid"], accelerator)
        history.append({"epoch": epoch, "train": losses, "valid": valid, "weights": weights})
        if not best or valid["mae"] < best["valid"]["mae"]:
            best = history[-1]
            best_weights = {name: x.cpu().clone() for name, x in network.state_dict().items()}
        states = {name: part.state_dict() for name, part in parts.items()}
        run.checkpoint(history=history, best=best, best_weights=best_weights, **states)
        accelerator.print(f"epoch {epoch:2d}  loss {losses['total']:.3f}  MAE {valid['mae']:.3f}")

    network.load_state_dict(best_weights)
    test, weights = evaluate(network, task, data["test"], accelerator)
    run.finish(best_weights, {**best, "test": test, "weights": weights, "history": history})
    accelerator.print(f"epoch {best['epoch']} is kept; on the test split, MAE {test['mae']:.3f}")
    accelerator.end_training()


@torch.no_grad()
def evaluate(
    model: TDMER, task: Sentiment, data: MultimodalDataset, accelerator: accelerate.Accelerator
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of a split, and the mean fusion weight of every branch."""
    model.eval()
    size, rows = 128 * accelerator.num_processes, []
    for batch in accelerator.prepare(DataLoader(data, size, collate_fn=collate)):
        output = model(batch.inputs, batch.masks)
        columns = [batch.labels, task.predict(output.logits), *output.weights.values()]
        rows.append(accelerator.gather_for_metrics(torch.stack(columns, dim=1)).cpu())
    labels, predictions, *weights = torch.cat(rows).unbind(1)
    if not predictions.isfinite().all():
        raise ValueError("a prediction is NaN or infinite: try a smaller --lr")
    means = {branch: x.mean().item() for branch, x in zip(output.weights, weights, strict=True)}
    return sentiment_metrics(predictions, labels), means


if __name__ == "__main__":
    main()
