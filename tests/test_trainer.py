"""The Trainer of transformers trains, measures, resumes and shares work as our own loop does."""

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader, Subset

from tdmer import TDMER, Sentiment, TDMERLoss, sentiment_metrics
from tdmer.data import collate, make_synthetic
from tdmer.trainer import TDMERForTrainer, WithLengths, collate_for_trainer

pytest.importorskip("accelerate", reason="the Trainer needs it")
from transformers import Trainer, TrainingArguments, set_seed

# A loader of the Trainer asks for pinned memory even where there is no accelerator.
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")

TASK = Sentiment()
WORLD = make_synthetic({"train": 24, "valid": 11}, missing=0.2)
TRAIN, VALID = WORLD["train"].dataset, WORLD["valid"].dataset

# What transformers 5 calls otherwise.
NEW = hasattr(TrainingArguments, "activation_checkpointing")
CHECKPOINTING = {"activation_checkpointing" if NEW else "gradient_checkpointing": True}
NEW = hasattr(TrainingArguments, "train_sampling_strategy")
BY_LENGTH = {"train_sampling_strategy": "group_by_length"} if NEW else {"group_by_length": True}


def make_model(seed=0, dropout=0.3, **options):
    set_seed(seed)
    model = TDMER(
        TRAIN.dims,
        TASK.num_classes,
        width=8,
        heads=2,
        dropout=dropout,
        input_dropout=dropout,
        feature_dropout=dropout,
        **options,
    )
    model.fit_normalization([collate(list(TRAIN))])
    return TDMERForTrainer(model, TDMERLoss(TASK))


def metrics(found):
    return sentiment_metrics(TASK.predict(torch.from_numpy(found.predictions)), found.label_ids)


def make_trainer(folder, model=None, train=TRAIN, valid=VALID, optimizers=(None, None), **options):
    """Defaults of the Trainer but for the size of the run and what it prints."""
    usual = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
    }
    return Trainer(
        model=make_model() if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **usual | options),
        data_collator=collate_for_trainer,
        train_dataset=train,
        eval_dataset=valid,
        compute_metrics=metrics,
        optimizers=optimizers,
    )


def weights(trainer):
    return {name: x.clone() for name, x in trainer.model.state_dict().items()}


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    best = {"metric_for_best_model": "mae", "greater_is_better": False}
    trainer = make_trainer(folder, num_train_epochs=4, load_best_model_at_end=True, **best)
    trainer.train()
    return trainer


def test_what_it_predicts_and_measures_is_ours(trained):
    assert trained.model_accepts_loss_kwargs is False
    found = trained.predict(VALID)
    batch = collate(list(VALID))
    model = trained.model.model.eval()
    with torch.no_grad():
        logits = model(batch.inputs, batch.masks).logits
    torch.testing.assert_close(torch.from_numpy(found.predictions), logits)
    assert (found.label_ids == batch.labels.numpy()).all()
    expected = sentiment_metrics(TASK.predict(logits), batch.labels)
    for name, value in expected.items():
        assert found.metrics[f"test_{name}"] == pytest.approx(value, rel=1e-5, nan_ok=True)


def test_the_best_epoch_is_loaded(trained):
    maes = logged(trained, "eval_mae")
    assert min(maes) < maes[-1]
    assert trained.evaluate()["eval_mae"] == pytest.approx(min(maes), rel=1e-6)


def test_a_run_that_is_resumed_ends_in_the_same_weights(tmp_path):
    often = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    steps = {**often, "max_steps": 5}
    whole = make_trainer(tmp_path, **steps)
    whole.train()
    for step in (2, 3):  # within an epoch of three steps, and at its end
        resumed = make_trainer(tmp_path / "resumed", make_model(seed=7), **steps)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        expected = weights(whole)
        for name, value in weights(resumed).items():
            assert torch.equal(value, expected[name]), (step, name)


def test_accumulated_batches_are_averaged(tmp_path):
    """Each with a discrepancy of its own: that of a single sample, so that no order matters."""
    few = Subset(TRAIN, range(6))
    model = make_model(dropout=0.0)
    start = {name: x.clone() for name, x in model.named_parameters()}
    for batch in DataLoader(few, 1, collate_fn=collate_for_trainer):
        (model(**batch)["loss"] / 6).backward()
    gradients = {name: x.grad.clone() for name, x in model.named_parameters()}
    model.zero_grad()
    trainer = make_trainer(
        tmp_path,
        model,
        few,
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=6,
        max_steps=1,
        max_grad_norm=0,
        lr_scheduler_type="constant",
    )
    trainer.train()
    for name, x in model.named_parameters():
        torch.testing.assert_close(x, start[name] - 0.1 * gradients[name], msg=name)


class Kept:
    """Counts the bytes that are kept for the gradient."""

    def __init__(self):
        self.bytes = 0

    def __call__(self, x):
        self.bytes += x.nbytes
        return x


@pytest.mark.parametrize("missing", [False, True])
def test_blocks_computed_anew_have_the_same_gradient_for_less_memory(missing):
    batch = collate_for_trainer(list(TRAIN))
    if missing:
        batch["inputs"].pop("audio")
        batch["masks"].pop("audio")
    found = []
    for enable in ("", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
        model = make_model(layers=3)
        if enable:
            getattr(model, enable)()
        kept = Kept()
        set_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
            loss = model(**batch)["loss"]
        loss.backward()
        gradients = [x.grad for x in model.parameters() if x.grad is not None]
        found.append((kept.bytes, [loss.detach(), *gradients]))
    (plain, expected), *others = found
    for less, values in others:
        assert less < 0.7 * plain
        assert all(map(torch.equal, values, expected))


def test_the_trainer_asks_for_that(tmp_path):
    trainer = make_trainer(tmp_path, **CHECKPOINTING, max_steps=1)
    trainer.train()
    assert all(encoder.recompute for encoder in trainer.model.model.attention.values())
    for options in ({"use_reentrant": True}, {"every_n_layers": 2}):
        with pytest.raises(ValueError, match="activation_checkpointing_kwargs must be None or"):
            make_model().activation_checkpointing_enable(options)


def test_batches_of_similar_length(tmp_path):
    trainer = make_trainer(
        tmp_path, train=WithLengths(TRAIN), valid=WithLengths(VALID), **BY_LENGTH
    )
    lengths = torch.stack(list(TRAIN.lengths.values())).sum(dim=0)
    assert trainer._get_train_sampler().lengths == lengths.tolist()
    trainer.train()
    expected = make_trainer(tmp_path, trainer.model).evaluate()
    assert trainer.evaluate()["eval_mae"] == pytest.approx(expected["eval_mae"], rel=1e-5)


def shared_run(folder, processes, **options):
    """Train without dropout on batches of eight samples of all processes together."""
    trainer = make_trainer(
        folder,
        make_model(dropout=0.0),
        num_train_epochs=1,
        optim="sgd",  # Adam would enlarge rounding where a gradient is 0.
        per_device_train_batch_size=8 // processes,
        per_device_eval_batch_size=8 // processes,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=1,
        **CHECKPOINTING if processes > 1 else {},
    )
    trainer.train(**options)
    return trainer


def figures(trainer):
    """Losses, also of an evaluation in equal shares, and metrics of one in unequal shares."""
    found = trainer.evaluate() | {"whole": trainer.evaluate(TRAIN)["eval_loss"]}
    found["train_loss"] = logged(trainer, "train_loss")[0]
    # The last batch, of three samples, is filled up to eight; and times differ.
    others = ("eval_loss", "runtime", "per_second")
    return {name: value for name, value in found.items() if not name.endswith(others)}


def work(rank, size, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    trainer = shared_run(folder, size)
    resumed = shared_run(folder, size, resume_from_checkpoint=f"{folder}/checkpoint-2")
    found = weights(trainer), weights(resumed), figures(trainer)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_train_measure_and_resume_as_one(tmp_path):
    multiprocessing.set_forkserver_preload([__name__])
    start_processes(work, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    trainer = shared_run(tmp_path / "one", 1)
    expected, measured = weights(trainer), figures(trainer)
    for rank in range(2):
        whole, resumed, found = torch.load(tmp_path / f"{rank}.pt")
        assert found == pytest.approx(measured, rel=1e-5)
        for name, value in expected.items():
            torch.testing.assert_close(whole[name], value, atol=1e-6, rtol=1e-5, msg=name)
            assert torch.equal(resumed[name], whole[name]), name
