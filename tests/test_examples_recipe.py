"""The recipe of the examples: classes and scores, steps, averaged weights, refit, all figures."""

import csv
import json
import math
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, log_loss

pytest.importorskip("accelerate", reason="the examples need the extra 'examples'")

from tdmer import TDMER, Classification, Sentiment, sentiment_metrics
from tdmer.baselines import MISA
from tdmer.data import MultimodalDataset
from tests.test_examples import call, in_process, load, refusal, run, write_mmsa, write_npz

QUICK = ["--width", 8, "--heads", 2, "--layers", 0]
BRANCHES = {"common", "face", "voice"}


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def mmsa(tmp_path_factory):
    return write_mmsa(tmp_path_factory.mktemp("data") / "small.pkl")


def options(npz, *more):
    where = ["--data", npz, "--label", "emotion", "--group", "actor", "--split", "folds:4/0"]
    return [*where, *QUICK, *more]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, npz):
    """The folder of a run of classes: two epochs of two steps, and one step."""
    folder = tmp_path_factory.mktemp("runs") / "classes"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "train", *options(npz, "--steps", 5, "--warmup", 1, "--out", folder))
    return folder


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_whole_numbers_are_classes(saved, npz, monkeypatch, tmp_path, capsys):
    config = json.loads((saved / "run.json").read_text())
    assert config["task"] == {
        "name": "Classification", "num_classes": 4, "label_smoothing": 0.1,
    }  # fmt: skip
    assert config["model"]["num_classes"] == 4
    assert config["samples"] == {
        "label": "emotion", "group": "actor", "split": "folds:4/0", "modalities": None,
        "normalize_groups": False,
    }  # fmt: skip
    found = metrics(saved)
    assert [row["step"] for row in found["history"]] == [2, 4, 5]
    for row in (found["test"], *(row["valid"] for row in found["history"])):
        assert row.keys() == {"loss", "accuracy", "f1_weighted", "f1_macro"}
    # The epoch that is kept has the greatest accuracy in validation, then the least cross-entropy.
    ranks = [(row["valid"]["accuracy"], -row["valid"]["loss"]) for row in found["history"]]
    assert found["epoch"] == ranks.index(max(ranks))
    assert found["step"] == found["history"][found["epoch"]]["step"]

    out = tmp_path / "predictions.csv"
    run(monkeypatch, "predict", saved, "--data", npz, "--out", out)
    assert f"accuracy {found['test']['accuracy']:.4f}" in capsys.readouterr().out
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 20
    right = [row["label"] == row["prediction"] for row in rows]
    assert np.mean(right) == pytest.approx(found["test"]["accuracy"])
    assert {row["label"] for row in rows} == {"0", "1", "2", "3"}
    with np.load(npz) as content:
        actors = {content["actor"][int(row["id"])] for row in rows}
    assert actors == {0, 12, 24, 36}
    run(monkeypatch, "predict", saved, "--data", npz, "--out", out, "--drop", "face")
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {float(row["face"]) for row in rows} == {0.0}


@pytest.mark.parametrize(
    ("accuracies", "losses", "kept"),
    [([0.5, 0.6, 0.6], [1.0, 2.0, 2.0], 1), ([0.5, 0.5, 0.5], [2.0, 1.0, 3.0], 1)],
)
def test_classes_are_chosen_by_accuracy_then_loss(
    monkeypatch, npz, tmp_path, accuracies, losses, kept
):
    script = load("train", monkeypatch)
    measure, figures = script.measure, list(zip(losses, accuracies, strict=True))
    figures.append((0.0, 1.0))  # of the test split

    def turned(*arguments):
        loss, accuracy = figures.pop(0)
        return measure(*arguments)._replace(metrics={"loss": loss, "accuracy": accuracy})

    monkeypatch.setattr(script, "measure", turned)
    call(monkeypatch, script, *options(npz, "--steps", 6, "--out", tmp_path))
    assert metrics(tmp_path)["epoch"] == kept


def test_both_tasks_learn(monkeypatch, npz, mmsa, tmp_path):
    long = ["--steps", 60, "--warmup", 5, "--lr", 0.01, "--average", 0.8]
    long += ["--dropout", 0, "--input-dropout", 0, "--batch-size", 8]
    long += ["--without", "con", "rec", "cp", "pp", "en", "dc", "dp"]
    run(monkeypatch, "train", *options(npz, *long, "--out", tmp_path / "classes"))
    assert metrics(tmp_path / "classes")["test"]["accuracy"] > 0.9
    run(monkeypatch, "train", "--data", mmsa, *QUICK, *long, "--out", tmp_path / "scores")
    assert metrics(tmp_path / "scores")["test"]["corr"] > 0.8


def test_a_modality_left_out_is_not_in_the_model(monkeypatch, mmsa, tmp_path):
    some = ["--modalities", "audio", "text", "--steps", 2]
    run(monkeypatch, "train", "--data", mmsa, *QUICK, *some, "--out", tmp_path)
    config = json.loads((tmp_path / "run.json").read_text())
    assert config["model"]["dims"] == {"text": 4, "audio": 3}
    out = tmp_path / "predictions.csv"
    run(monkeypatch, "predict", tmp_path, "--data", mmsa, "--out", out)
    assert "video" not in out.read_text().splitlines()[0]


def test_the_learning_rate_warms_up_and_stays(monkeypatch, mmsa, tmp_path):
    script, rates = load("train", monkeypatch), []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(script.torch.optim, "AdamW", Recorded)
    some = ["--steps", 7, "--warmup", 4, "--lr", 0.01, "--out", tmp_path]
    call(monkeypatch, script, "--data", mmsa, *QUICK, *some)
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01])


def test_steps_count_accumulated_batches_once(monkeypatch, mmsa, tmp_path):
    """Of 48 samples in batches of 8, two make a step, and three steps an epoch."""
    some = ["--batch-size", 8, "--accumulate", 2, "--steps", 5]
    script, batches = load("train", monkeypatch), []
    forward = script.TDMERLoss.forward

    def counted(objective, output, labels):
        batches.append(len(labels))
        return forward(objective, output, labels)

    monkeypatch.setattr(script.TDMERLoss, "forward", counted)
    call(monkeypatch, script, "--data", mmsa, *QUICK, *some, "--out", tmp_path)
    assert [row["step"] for row in metrics(tmp_path)["history"]] == [3, 5]
    assert batches == 10 * [8]


def test_the_averaged_weights_are_measured_and_saved(monkeypatch, mmsa, tmp_path):
    """The average of the weights after every step, the first as it is; 0 averages nothing."""
    arguments = ["--data", mmsa, *QUICK, "--steps", 3, "--warmup", 1, "--lr", 0.01]
    saved = {}
    for decay in (0, 0.75):
        script, steps, read = load("train", monkeypatch), [], []
        measure, update = script.measure, script.AveragedModel.update_parameters

        def updated(averaged, model, update=update, steps=steps):
            steps.append({n: x.detach().clone() for n, x in model.state_dict().items()})
            update(averaged, model)

        def measured(model, *rest, measure=measure, read=read):
            read.append({n: x.clone() for n, x in model.state_dict().items()})
            return measure(model, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(script, "measure", measured)
            patch.setattr(script.AveragedModel, "update_parameters", updated)
            folder = tmp_path / str(decay)
            call(monkeypatch, script, *arguments, "--out", folder, "--average", decay)
        assert len(steps) == 3
        first, second, third = (step["classifier.0.weight"] for step in steps)
        average = decay * first + (1 - decay) * second
        torch.testing.assert_close(read[0]["classifier.0.weight"], average)
        average = decay * average + (1 - decay) * third
        torch.testing.assert_close(read[1]["classifier.0.weight"], average)
        saved[decay] = load_file(folder / "model.safetensors")
        chosen = read[metrics(folder)["epoch"]]
        assert saved[decay].keys() == chosen.keys()
        for name, x in chosen.items():
            assert torch.equal(saved[decay][name], x)
            if name.startswith("normalizations"):  # which nothing trains
                assert torch.equal(x, steps[0][name])
    assert not torch.equal(saved[0]["classifier.0.weight"], saved[0.75]["classifier.0.weight"])


def test_a_refit_trains_on_train_and_valid_as_long_as_was_chosen(monkeypatch, npz, saved, tmp_path):
    script = load("train", monkeypatch)
    read, measure, trained, collate = [], script.measure, [], script.collate

    def measured(model, task, data, accelerator):
        read.append(data.ids)
        return measure(model, task, data, accelerator)

    def collated(samples, **options):
        trained.extend(sample.id for sample in samples if options)
        return collate(samples, **options)

    monkeypatch.setattr(script, "measure", measured)
    monkeypatch.setattr(script, "collate", collated)
    steps = ["--steps", 5, "--warmup", 1]
    again = ["--refit", saved, "--out", tmp_path / "refit"]
    chosen = tmp_path / "chosen"  # in the second epoch of three
    shutil.copytree(saved, chosen)
    (chosen / "metrics.json").write_text(json.dumps(metrics(saved) | {"epoch": 1, "step": 4}))
    again[1] = chosen
    call(monkeypatch, script, *options(npz, *steps, *again))
    found = metrics(tmp_path / "refit")
    assert found["step"] == 4
    assert [row["step"] for row in found["history"]] == [2, 4]
    assert "valid" not in found
    assert found["branches"].keys() == {"test"}
    assert found["test"].keys() == metrics(saved)["test"].keys()
    # 40 samples trained on and 20 to choose by; the test split is read once.
    assert len(set(trained)) == 60
    assert len(read) == 1
    assert not set(read[0]) & set(trained)
    # The end of training is what is kept, and it can be resumed as any run.
    out = tmp_path / "predictions.csv"
    run(monkeypatch, "predict", tmp_path / "refit", "--data", npz, "--out", out)

    for other in (["--lr", 0.5], ["--seed", 3], ["--split", "folds:4/1"], ["--width", 16]):
        message = refusal(monkeypatch, "train", *options(npz, *steps, *again, *other))
        assert f"{chosen / 'run.json'} is of another run" in message
        assert message.endswith("Give the same options")
    # How long at most was only of the choice.
    again[3] = tmp_path / "longer"
    call(monkeypatch, script, *options(npz, "--steps", 9, "--warmup", 1, *again))
    assert metrics(tmp_path / "longer") == found
    again = ["--refit", tmp_path / "refit", "--out", tmp_path / "twice"]
    assert "got a refit" in refusal(monkeypatch, "train", *options(npz, *steps, *again))
    again[1] = tmp_path / "none"
    assert "none" in refusal(monkeypatch, "train", *options(npz, *steps, *again))


def outputs(monkeypatch, labels, **logits):
    """Return the module and what a model says of some samples, the last without voice."""
    module = load("measure", monkeypatch)
    count = len(labels)
    here = torch.ones(count, dtype=torch.bool)
    present = dict.fromkeys(logits, here) | {"voice": here & (torch.arange(count) < count - 1)}
    generator = torch.Generator().manual_seed(3)
    weights = {b: torch.rand(count, generator=generator) for b in logits}
    everything = module.Outputs(labels, sum(logits.values()), weights, logits, present)
    monkeypatch.setattr(module, "collect", lambda *_: everything)
    return module, everything


def test_the_figures_of_branches_and_confidence_are_what_they_say(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (30,), generator=generator)
    labels[4] = -100
    logits = {b: 2 * torch.randn(30, 3, generator=generator) for b in ("common", "face", "voice")}
    module, said = outputs(monkeypatch, labels, **logits)
    found = module.measure(None, Classification(3), SimpleNamespace(dims={}))

    known = labels != -100
    true = labels[known].numpy()
    for branch, x in logits.items():
        probabilities = x[known].double().softmax(1).numpy()
        alone = found.branches["alone"][branch]
        assert alone["loss"] == pytest.approx(log_loss(true, probabilities, labels=range(3)), 1e-5)
        assert alone["accuracy"] == accuracy_score(true, probabilities.argmax(1))
        macro = f1_score(true, probabilities.argmax(1), average="macro")
        assert alone["f1_macro"] == pytest.approx(macro)
        # Of the labelled samples that have the branch.
        counted = known & said.present[branch]
        p = x[counted].double().softmax(1)
        tcp = p[torch.arange(len(p)), labels[counted]].numpy()
        weight = said.weights[branch][counted].double().numpy()
        reliability = found.branches["confidence"][branch].pop("reliability")
        groups = np.array_split(np.argsort(weight), 5)
        assert np.array(reliability) == pytest.approx(
            np.array([[weight[g].mean(), tcp[g].mean()] for g in groups]), abs=1e-6
        )
        assert found.branches["confidence"][branch] == pytest.approx(
            {
                "weight": weight.mean(),
                "tcp": tcp.mean(),
                "error": np.abs(weight - tcp).mean(),
                "corr": stats.pearsonr(weight, tcp)[0],
                "softmax_corr": stats.pearsonr(p.amax(1).numpy(), tcp)[0],
            },
            abs=1e-6,
        )
        assert found.weights[branch] == pytest.approx(said.weights[branch].mean().item())
    given = torch.stack([x.double().softmax(1) for x in logits.values()])
    mean = given.mean(0)
    mean[-1] = given[:2, -1].mean(0)
    expected = log_loss(true, mean[known].numpy(), labels=range(3))
    assert found.branches["mean"]["loss"] == pytest.approx(expected, 1e-5)
    assert found.metrics == module.metrics(Classification(3), said.logits, labels)
    # Whatever a system is trained with, its loss is one to compare.
    smoothed = Classification(3, label_smoothing=0.3)
    assert module.metrics(smoothed, said.logits, labels) == found.metrics
    assert (
        not smoothed(said.logits, labels)[known].mean().isclose(torch.tensor(found.metrics["loss"]))
    )


def test_the_mean_of_branches_serves_scores(monkeypatch):
    task = Sentiment((-1, 0, 1))
    generator = torch.Generator().manual_seed(1)
    labels = 2 * torch.rand(20, generator=generator) - 1
    logits = {b: torch.randn(20, 3, generator=generator) for b in ("common", "voice")}
    module, _ = outputs(monkeypatch, labels, **logits)
    found = module.measure(None, task, SimpleNamespace(dims={}))
    scores = torch.stack([task.predict(x) for x in logits.values()]).mean(0)
    scores[-1] = task.predict(logits["common"])[-1]
    assert found.branches["mean"]["mae"] == pytest.approx((scores - labels).abs().mean().item())
    assert found.branches["alone"]["voice"]["corr"] == pytest.approx(
        sentiment_metrics(task.predict(logits["voice"]), labels)["corr"]
    )
    assert found.metrics["loss"] == pytest.approx(task(sum(logits.values()), labels).mean().item())


def test_samples_without_anything_and_without_labels_have_figures(monkeypatch):
    module = load("measure", monkeypatch)
    splits = load("splits", monkeypatch)
    data = MultimodalDataset(
        {"face": [torch.ones(n, 2) for n in (0, 1, 1)], "voice": [torch.ones(0, 3)] * 3},
        torch.tensor([1, -100, 0]),
    )
    source = splits.Samples(
        data, range(3), data.dims, data.lengths, data.labels, data.ids, data.ids
    )
    model = TDMER(data.dims, 2, width=4, heads=1)
    found = module.measure(model, Classification(2), source)
    assert math.isfinite(found.branches["mean"]["loss"])
    # One labelled sample has a face, and none a voice.
    for branch in ("common", "face"):
        assert 0 < found.branches["confidence"][branch]["tcp"] < 1
        assert math.isnan(found.branches["confidence"][branch]["corr"])
    assert math.isnan(found.branches["confidence"]["voice"]["tcp"])
    assert found.weights["voice"] == 0
    # Without dropout, in whatever state the model was.
    again = module.measure(model.train(), Classification(2), source)
    assert str(again) == str(found)


def test_every_figure_is_in_the_run_folder(saved):
    found = metrics(saved)["branches"]
    assert found.keys() == {"valid", "test"}
    for split in found.values():
        assert split["alone"].keys() == split["confidence"].keys() == BRANCHES
        for branch in BRANCHES:
            assert split["alone"][branch].keys() == metrics(saved)["test"].keys()
            assert split["confidence"][branch].keys() == {
                "weight", "tcp", "error", "corr", "softmax_corr", "reliability",
            }  # fmt: skip
        assert split["mean"].keys() == metrics(saved)["test"].keys()
    confidence = found["test"]["confidence"]
    assert confidence["face"]["weight"] == pytest.approx(metrics(saved)["weights"]["face"])


def test_groups_in_several_splits_are_counted_aloud(monkeypatch, mmsa, tmp_path, capsys):
    content = pickle.loads(mmsa.read_bytes())
    content["test"]["id"][0] = "train$_$100"
    (tmp_path / "leak.pkl").write_bytes(pickle.dumps(content))
    arguments = ["--data", tmp_path / "leak.pkl", *QUICK, "--steps", 1, "--out", tmp_path / "run"]
    run(monkeypatch, "train", *arguments)
    assert "groups in several splits: 1" in capsys.readouterr().out


def test_seeds_of_classes_are_summed_up(monkeypatch, npz, tmp_path, capsys):
    script, trained = load("experiments/seeds", monkeypatch), []
    in_process(monkeypatch, script, trained)
    some = options(npz, "--steps", 4, "--seeds", 2, "--out", tmp_path)
    call(monkeypatch, script, *some)
    assert trained == ["seed-0", "seed-1"]
    summary = metrics(tmp_path)
    accuracies = [metrics(tmp_path / name)["test"]["accuracy"] for name in trained]
    assert summary["test"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    losses = [metrics(tmp_path / name)["valid"]["loss"] for name in trained]
    best = int(np.argmin(losses))
    assert summary["interval"]["seed"] == best
    assert summary["interval"]["test"].keys() == {"accuracy", "f1_weighted", "f1_macro"}
    low, high = summary["interval"]["test"]["accuracy"]
    assert low <= accuracies[best] <= high
    assert low < high
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "MAE" not in printed
    assert summary["missing"].keys() == {"face", "voice"}


def test_other_systems_are_trained_by_the_same_loop(monkeypatch, mmsa, tmp_path, capsys):
    arguments = ["--data", mmsa, "--system", "misa", "--width", 8, "--steps", 4, "--out", tmp_path]
    run(monkeypatch, "train", *arguments)
    found = metrics(tmp_path)
    assert list(found["history"][0]["train"]) == [
        *("total", "task", "similarity", "difference", "reconstruction"),
    ]
    assert found["weights"] == found["branches"]["test"] == {}
    model = MISA.from_pretrained(tmp_path)
    assert model.options["width"] == 8
    assert model.normalizations["text"].mean.any()
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", *arguments, "--alpha", 1)
    assert "unrecognized arguments: --alpha" in capsys.readouterr().err
