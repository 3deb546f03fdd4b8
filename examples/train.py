"""Train TDMER with one seed; experiments/ trains several and compares them.

    python examples/train.py                       # synthetic data
    python examples/train.py --data mosi.pkl       # MMSA's layout: MOSI, MOSEI, CH-SIMS
    python examples/train.py --data mosei          # a folder that tdmer.data.write_store made
    python examples/train.py --data x.npz --label emotion --group actor --split folds:4/0
    python examples/train.py --without con cp      # an ablation
    python examples/train.py --system mult         # any system of tdmer.baselines, likewise
    python examples/train.py --refit runs/latest --out runs/refit   # on train and valid together
    python examples/train.py --resume              # go on where a run was cut short
    torchrun --nproc-per-node 2 examples/train.py  # several processes, on GPUs or a CPU

Labels are scores where they are floating point, and classes where they are whole numbers. Every
choice is made on the validation split, after every epoch and with the moving average of the
weights; the test split is read once, with the weights that were best there. The run folder then
holds run.json, metrics.json and the model with its task, as tdmer.Predictor takes it. Until then it
holds checkpoint.pt, written after every epoch. What an epoch draws at random depends on the seed,
the epoch and the process alone, so that --resume, with the same options, ends a run that was killed
at any moment in the same weights and figures bit for bit.
"""

import argparse
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration, set_seed
from measure import by_name, choose, measure
from options import parse_args, parts_of, take_arguments
from run_folder import RunFolder, chosen
from splits import fingerprint, load_splits, read_extractor, shared_groups
from task import check_labels, check_training, describe_task, main_figure, standing
from torch.optim.lr_scheduler import LinearLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import tdmer
from tdmer import TDMERLoss
from tdmer.data import LengthBucketSampler, collate
from tdmer.inputs import Inputs
from tdmer.pretrained import Pretrained
from tdmer.tasks import from_config


def main() -> None:
    """Train, and say in one line what is wrong with a file or an option."""
    args = parse_args(__doc__)
    try:
        train(args)
    except KeyboardInterrupt:
        raise SystemExit("train.py: stopped; --resume goes on after the last epoch") from None
    except (OSError, TypeError, ValueError) as error:
        speaks = accelerate.PartialState().is_main_process
        raise SystemExit(f"train.py: {error}" if speaks else 1) from None


def train(args: argparse.Namespace, watch: Callable[[list[Any]], None] = lambda _: None) -> None:
    """Go through the epochs, after each of which ``watch`` gets all; read the test split once."""
    torch.set_num_threads(args.threads)
    accelerator = accelerate.Accelerator(
        cpu=args.cpu or not torch.accelerator.is_available(),
        mixed_precision=args.precision,
        gradient_accumulation_steps=args.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )

    processes = accelerator.num_processes
    share, rest = divmod(args.batch_size, processes)
    if rest:
        rule = f"be a multiple of the number of processes, {processes}"
        raise ValueError(f"--batch-size must {rule}, got {args.batch_size}")
    places = ("data", "out", "resume", "overwrite")
    options = {name: value for name, value in vars(args).items() if name not in places}
    samples = take_arguments(options, load_splits)
    data = load_splits(args.data, **samples)
    described = describe_task(data, **take_arguments(options, describe_task))
    task = from_config(described)
    figure = main_figure(task)
    check_labels(args.data, data, task)
    check_training(data, task)
    system, objective_of = parts_of(args.system)
    sizes = {"dims": data["train"].dims, "num_classes": task.num_classes}
    where = {"device": accelerator.device.type, "processes": processes}
    config: dict[str, Any] = {
        "data": fingerprint(args.data),
        "samples": samples,
        "model": sizes | take_arguments(options, system),
        "task": described,
        "loss": take_arguments(options, objective_of),
        "training": options | where | {"refit": args.refit is not None},
        "versions": {p.__name__: p.__version__ for p in (tdmer, torch, np, accelerate)},
    }
    modalities = list(data["train"].dims)
    if args.refit:
        data["train"] = data["train"].join(data["valid"])
        config["training"]["steps"], modalities = chosen(args.refit, config)
    steps = config["training"]["steps"]

    # A batch holds samples of similar length, and each process gets its part of it.
    which = {"num_replicas": processes, "rank": accelerator.process_index}
    sampler = LengthBucketSampler(data["train"].lengths, share, pool=10, seed=args.seed, **which)
    augment = functools.partial(collate, modality_dropout=args.modality_dropout)
    loader = DataLoader(data["train"], batch_sampler=sampler, collate_fn=augment)
    loader = prepare_data_loader(loader, accelerator.device, 1, 0, put_on_device=True)
    set_seed(args.seed)
    network = system(**config["model"])
    network.extractor_config = read_extractor(args.data)
    objective = objective_of(task, **config["loss"]).to(accelerator.device)
    if processes > 1 and isinstance(objective, TDMERLoss):
        # The terms of several processes are those of the whole batch.
        objective.group = torch.distributed.group.WORLD
    assert isinstance(network.normalizations, Inputs)
    unusable = network.normalizations.fit(DataLoader(data["train"], 128, collate_fn=collate))
    # Before mixed precision: as they are saved, the averaged weights are measured.
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(args.average))
    averaged = averaged.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        network.parameters(), args.lr, weight_decay=args.weight_decay, fused=True
    )
    scheduler = LinearLR(optimizer, 1 / args.warmup, total_iters=args.warmup - 1)
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer, "scheduler": scheduler}
    model, optimizer, scheduler = accelerator.prepare(*parts.values())
    parts["averaged"] = averaged

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
        f"{args.out}, from epoch {len(history)}; processes: {processes}; "
        f"entries that are no number: {unusable}; groups in several splits: "
        f"{len(shared_groups(data))}"
    )

    for epoch in itertools.count(len(history)):
        step = history[-1]["step"] if history else 0
        if step == steps or (best and step - best["step"] >= args.patience):
            break
        # An epoch draws from generators of its own, so that a checkpoint needs no state of theirs.
        sequence = np.random.SeedSequence((args.seed, epoch))
        seeds = sequence.generate_state(processes).tolist()
        set_seed(seeds[accelerator.process_index])
        for counting in (loader, sampler):  # Newer versions of accelerate set the sampler, too.
            counting.set_epoch(epoch)
        model.train()
        sums = torch.zeros((), device=accelerator.device)
        for batch in itertools.islice(loader, args.accumulate * (steps - step)):
            with accelerator.accumulate(model):
                terms = objective(model(batch.inputs, batch.masks), batch.labels)
                accelerator.backward(terms.total)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                averaged.update_parameters(network)
                step += 1
            # Terms are means over samples, of all processes; the number of samples comes last.
            named = by_name(terms) | {"count": torch.ones_like(terms.total)}
            sums = sums + len(batch.labels) * torch.stack([*named.values()]).detach()
        *totals, count = sums.tolist()
        losses = {name: x / count for name, x in zip(named, totals, strict=False)}
        if not math.isfinite(losses["total"]):
            raise ValueError(f"the loss is {losses['total']} in epoch {epoch}: try a smaller --lr")
        row: dict[str, Any] = {"epoch": epoch, "step": step, "train": losses}
        row["modalities"] = modalities
        branches = {}
        if not args.refit:
            look = choose if args.choose_modalities else measure
            valid = look(averaged.module, task, data["valid"], accelerator)
            row |= {"valid": valid.metrics, "weights": valid.weights}
            row["modalities"] = valid.modalities
            branches["valid"] = valid.branches
        history.append(row)
        better = not args.refit and (
            not best or standing(task, row["valid"]) > standing(task, best["valid"])
        )
        if args.refit or better:
            best = row | {"branches": branches}
            best_weights = {n: x.cpu().clone() for n, x in averaged.module.state_dict().items()}
        states = {name: part.state_dict() for name, part in parts.items()}
        run.checkpoint(history=history, best=best, best_weights=best_weights, **states)
        shown = "" if args.refit else f"  valid {figure} {row['valid'][figure]:.3f}"
        accelerator.print(f"epoch {epoch:2d}  step {step}  loss {losses['total']:.3f}{shown}")
        watch(history)

    chosen_model = averaged.module
    assert isinstance(chosen_model, Pretrained)
    chosen_model.load_state_dict(best_weights)
    test = measure(chosen_model, task, data["test"].only(best["modalities"]), accelerator)
    best["branches"]["test"] = test.branches
    results = best | {"test": test.metrics, "weights": test.weights, "history": history}
    run.finish(results, chosen_model, task)
    accelerator.print(f"epoch {best['epoch']} is kept; test: {figure} {test.metrics[figure]:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
