"""Train TDMER together with a pretrained encoder of text.

    python examples/finetune.py --data mosi.pkl --encoder FOLDER
    python examples/finetune.py --data mosi.pkl --encoder FOLDER --layer last --train-layers 2

The file is one in MMSA's layout, whose ``raw_text`` the encoder reads; other modalities are
features, as in train.py. FOLDER holds any encoder of transformers with its tokenizer; nothing is
downloaded. First the model alone learns, on the encoder as it is: what a model without knowledge
would ask of the encoder is no good to it. Then both learn, the encoder at a rate of its own; its
rate rises, and both fall to 0. The epoch is chosen on the validation split, with the moving average
of the weights, and the test split is read once. The folder --out then holds metrics.json and the
model, as EncodedTDMER.from_pretrained takes it.
"""

import argparse
import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import measure
from options import by_modality
from splits import Samples, load_splits
from task import check_labels, check_training, describe_task, main_figure, standing
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from tdmer import TDMER, TDMERLoss
from tdmer.data import LengthBucketSampler, Sample, collate, load_pickle
from tdmer.encoders import EncodedTDMER, PretrainedEncoder
from tdmer.tasks import from_config


class WithTokens(Dataset[Sample]):
    """Samples whose text is the ids of its tokens, for which collate gives the mask.

    Args:
        source: The samples.
        tokens: The ids of the tokens, by the name of the sample.
    """

    def __init__(self, source: Dataset[Sample], tokens: dict[str, Tensor]) -> None:
        self.source, self.tokens = source, tokens

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        sample = self.source[index]
        return sample._replace(inputs=sample.inputs | {"text": self.tokens[sample.id]})


def main() -> None:
    """Train, and say in one line what is wrong with a file or an option."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="MMSA's layout, with raw_text")
    add("--encoder", type=Path, required=True, help="folder of a model of transformers")
    add("--layer", default="weighted", help="last, weighted, or the number of a hidden layer")
    add("--train-layers", type=int, default=6, help="last blocks that are trained; 0: none")
    add("--modalities", nargs="+", help="those beside the text; all by default")
    add("--out", type=Path, default=Path("runs/finetuned"), help="folder to write")
    add("--seed", type=int, default=0)
    add("--frozen-epochs", type=int, default=15, help="in which the model alone learns, at first")
    add("--epochs", type=int, default=14, help="in which both learn, after them")
    add("--batch-size", type=int, default=32)
    add("--lr", type=float, default=1e-3, help="highest learning rate of the model")
    add("--encoder-lr", type=float, default=1e-4, help="the same of the encoder")
    add("--warmup", type=int, default=40, help="steps in which each rate rises")
    add("--rec-weight", type=float, default=1.0, help="of L_rec, which trains the encoder, too")
    add("--input-dropout", type=by_modality(float), default=0.5, help="or text=X,audio=Y")
    add("--average", type=float, default=0.99, help="decay of averaged weights")
    add("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    try:
        finetune(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"finetune.py: {error}") from None


def load_data(args: argparse.Namespace, encoder: PretrainedEncoder) -> dict[str, Samples]:
    """Return the splits, in which texts are token ids."""
    splits = load_splits(args.data, modalities=args.modalities)
    tokens: dict[str, Tensor] = {}
    for split, content in load_pickle(args.data).items():
        if "raw_text" not in content:
            raise ValueError(f"{args.data}, {split}: there must be raw_text, got {list(content)}")
        ids, mask = encoder.tokenize([str(text) for text in content["raw_text"]])
        found = [row[real] for row, real in zip(ids, mask, strict=True)]
        tokens |= dict(zip(map(str, content["id"]), found, strict=True))
    return {
        split: replace(
            data,
            source=WithTokens(data.source, tokens),
            dims=data.dims | {"text": encoder.width},
            lengths=data.lengths | {"text": torch.tensor([len(tokens[name]) for name in data.ids])},
        )
        for split, data in splits.items()
    }


def finetune(args: argparse.Namespace) -> None:
    """Prepare, go through the epochs, and read the test split once."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    layer = int(args.layer) if args.layer.isdecimal() else args.layer
    encoder = PretrainedEncoder.from_pretrained(
        args.encoder, layer=layer, train=args.train_layers or "none"
    )
    data = load_data(args, encoder)
    values = [float(value) for value in range(-3, 4)]
    task = from_config(describe_task(data, values=values, l1_weight=0.5, label_smoothing=0.1))
    check_labels(args.data, data, task)
    check_training(data, task)
    figure = main_figure(task)
    fused = TDMER(data["train"].dims, task.num_classes, input_dropout=args.input_dropout)
    model = EncodedTDMER({"text": encoder}, fused)
    model.fit_normalization(DataLoader(data["train"], 128, collate_fn=collate))
    objective = TDMERLoss(task, rec_weight=args.rec_weight)
    sampler = LengthBucketSampler(data["train"].lengths, args.batch_size, pool=10, seed=args.seed)
    loader = DataLoader(data["train"], batch_sampler=sampler, collate_fn=collate)
    groups = model.parameter_groups(lr=args.lr, encoder_lr=args.encoder_lr)
    optimizer = torch.optim.AdamW(groups)
    frozen = args.frozen_epochs * len(loader)
    steps = frozen + args.epochs * len(loader)

    def rate(step: int, start: int) -> float:
        rise, fall = (step + 1 - start) / args.warmup, (steps - step) / max(1, steps - frozen)
        return float(max(0.0, min(rise, fall, 1.0)))

    starts = [0, frozen][: len(groups)]
    scheduler = LambdaLR(optimizer, [functools.partial(rate, start=start) for start in starts])
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.average))
    trained = [weight for weight in encoder.model.parameters() if weight.requires_grad]

    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    best_weights: dict[str, Tensor] = {}
    for epoch in range(args.frozen_epochs + args.epochs):
        sampler.set_epoch(epoch)
        for weight in trained:
            weight.requires_grad_(epoch >= args.frozen_epochs)
        begin, total = time.perf_counter(), 0.0
        model.train()
        for batch in loader:
            loss = objective(model(batch.inputs, batch.masks), batch.labels).total
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            averaged.update_parameters(model)
            total += loss.item() / len(loader)
        seconds = time.perf_counter() - begin
        valid = measure(averaged.module, task, data["valid"]).metrics
        history.append({"epoch": epoch, "loss": total, "valid": valid, "seconds": seconds})
        if not best or standing(task, valid) > standing(task, best["valid"]):
            best = history[-1]
            kept = averaged.module.state_dict()
            best_weights = {name: x.clone() for name, x in kept.items()}
        shown = f"loss {total:.3f}  valid {figure} {valid[figure]:.3f}"
        print(f"epoch {epoch}  {shown}  {seconds:.0f} s", flush=True)

    model.load_state_dict(best_weights)
    test = measure(model, task, data["test"])
    model.save_pretrained(args.out, task=task)
    options = {name: str(x) if isinstance(x, Path) else x for name, x in vars(args).items()}
    found = best | {"test": test.metrics, "weights": test.weights, "history": history}
    (args.out / "metrics.json").write_text(json.dumps({"options": options} | found, indent=2))
    print(f"epoch {best['epoch']} is kept; test: {figure} {test.metrics[figure]:.3f}")


if __name__ == "__main__":
    main()
