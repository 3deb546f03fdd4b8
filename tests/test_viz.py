"""The pictures show what they are given, under the names that they promise."""

import math

import numpy as np
import pytest
import torch

from tests.test_import import imported_by

pytest.importorskip("matplotlib", reason="pictures need the extra 'viz'")

from matplotlib.figure import Figure

from tdmer import TDMER, Classification, MultiLabel, Predictor, Sentiment
from tdmer.objective import TERMS
from tdmer.prediction import Contribution, Prediction
from tdmer.viz import (
    class_contributions,
    confusion_matrix,
    contributions,
    edge_graph,
    predicted_scores,
    reliability,
    step_contributions,
    subspaces,
    training_curves,
)


def row(epoch, **changes):
    parts = {
        "train": {"total": 9.0, "task": 2.0 - epoch, "con": 0.0, "f": 3.0},
        "valid": {"mae": 1.5 - epoch / 4, "corr": 0.5, "f1_non0": 0.6},
        "weights": {"common": 0.3, "text": 0.4 + epoch / 10},
    }
    return {"epoch": epoch, **parts, **changes}


def lines(axes):
    """Return the points of every curve by its name, without what the name means."""
    return {line.get_label().split(":")[0]: line.get_xydata().tolist() for line in axes.lines}


def test_a_curve_for_every_name():
    figure = training_curves([row(0), row(1)])
    losses, metrics, weights = figure.axes
    assert lines(losses) == {"task": [[0, 2.0], [1, 1.0]], "f": [[0, 3.0], [1, 3.0]]}
    assert lines(metrics) == {"MAE": [[0, 1.5], [1, 1.25]], "r": [[0, 0.5], [1, 0.5]]}
    assert lines(weights) == {"common": [[0, 0.3], [1, 0.3]], "text": [[0, 0.4], [1, 0.5]]}
    assert losses.get_yscale() == "log"
    assert weights.get_ylim()[0] == 0
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel()
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert texts == [line.get_label() for line in axes.lines]


def test_every_loss_has_its_meaning_and_its_line():
    figure = training_curves([row(0, train=dict.fromkeys(["task", *TERMS], 1.0))])
    curves = figure.axes[0].lines
    assert [line.get_label().split(": ")[0] for line in curves] == ["task", *TERMS]
    assert all(line.get_label().split(": ")[1] for line in curves)
    # Told apart without their colours.
    looks = {
        (line.get_linestyle(), line.get_marker(), line.get_markerfacecolor() == "white")
        for line in curves
    }
    assert len(looks) == len(curves)


def test_figures_of_classes_are_drawn():
    valid = {"loss": 1.5, "accuracy": 0.5, "f1_weighted": 0.25, "f1_macro": 0.125}
    drawn = lines(training_curves([row(0, valid=valid)]).axes[1])
    expected = {"accuracy": 0.5, "F1 weighted": 0.25, "F1 macro": 0.125}
    assert drawn == {name: [[0, value]] for name, value in expected.items()}


def test_the_chosen_epoch_is_marked(tmp_path):
    figure = training_curves([row(0), row(1), row(2)], chosen=1)
    for axes in figure.axes:
        mark = axes.lines[-1]
        assert mark.get_linestyle() == "--"
        assert list(mark.get_xdata()) == [1, 1]
    figure.savefig(tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("undefined", [None, math.nan])
def test_what_is_undefined_is_a_gap(undefined):
    history = [row(0, valid={"corr": undefined}), row(1, valid={"corr": 0.5})]
    figure = training_curves(history)
    ((_, first), (_, second)) = lines(figure.axes[1])["r"]
    assert math.isnan(first)
    assert second == 0.5


def test_names_that_are_not_there_are_not_drawn():
    figure = training_curves([row(0, train={"con": 0.0}, valid={"mae": None}, weights={})])
    assert [len(axes.lines) for axes in figure.axes] == [0, 0, 0]


def test_no_epoch_is_refused():
    with pytest.raises(ValueError, match="history must hold at least one epoch, got none"):
        training_curves([])


def predicted(task, decision, probabilities):
    branches = {
        "common": Contribution(0.5, decision, probabilities, None),
        "text": Contribution(0.75, decision, probabilities, 0.25),
    }
    # The name is no formula, and would be a wrong one.
    return Prediction("clip$_$1", task, decision, probabilities, branches, ["audio"])


def bars(axes):
    return [(round(bar.get_width(), 6), round(bar.get_height(), 6)) for bar in axes.patches]


PREDICTIONS = [
    predicted("Sentiment", -0.25, {"-1": 0.5, "0": 0.25, "1.5": 0.25}),
    predicted("Classification", "$_$", {"glad": 0.25, "$_$": 0.75}),
    predicted("MultiLabel", ["glad", "calm"], {"glad": 0.5, "sad": 0.125, "calm": 0.75}),
    predicted("MultiLabel", [], {"glad": 0.25}),
]


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda prediction: prediction.task)
def test_a_bar_for_every_figure_of_a_prediction(prediction, tmp_path):
    figure = contributions(prediction)
    outcome, parts = figure.axes
    assert outcome.get_title() == str(prediction).splitlines()[0]
    assert all(axes.get_title() and axes.get_xlabel() for axes in figure.axes)
    assert [width for width, _ in bars(parts)] == [0.5, 0.75, 0.25]  # none where missing
    own = str(prediction).splitlines()[3].split(maxsplit=2)[2]
    labels = [label.get_text() for label in parts.get_yticklabels()]
    assert labels == [f"common\n{own}", f"text\n{own}", "audio\nmissing"]
    figure.savefig(tmp_path / "clip.png")
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_a_score_stands_on_its_scale():
    outcome, _ = contributions(PREDICTIONS[0]).axes
    middles = [bar.get_x() + bar.get_width() / 2 for bar in outcome.patches]
    assert middles == pytest.approx([-1.0, 0.0, 1.5])
    assert [height for _, height in bars(outcome)] == [0.5, 0.25, 0.25]
    assert list(outcome.lines[0].get_xdata()) == [-0.25, -0.25]


@pytest.mark.parametrize(("prediction", "dark"), [(1, [False, True]), (2, [True, False, True])])
def test_what_is_predicted_is_dark(prediction, dark):
    outcome, _ = contributions(PREDICTIONS[prediction]).axes
    values = list(PREDICTIONS[prediction].probabilities.values())
    assert [width for width, _ in bars(outcome)] == values
    assert [bar.get_facecolor()[0] < 0.5 for bar in outcome.patches] == dark
    assert len(outcome.lines) == (prediction == 2)


@pytest.fixture(scope="module")
def outputs():
    """Two batches of five; the video of two samples, and the audio of one, are missing."""
    torch.manual_seed(0)
    model = TDMER({"text": 3, "audio": 2, "video": 2}, 3, width=8, heads=2).eval()
    found = []
    for batch in range(2):
        inputs = {m: torch.randn(5, 4, width) for m, width in model.dims.items()}
        masks = {m: torch.ones(5, 4, dtype=torch.bool) for m in model.dims}
        masks["video"][batch] = False
        masks["audio"][4] = masks["audio"][4] & (batch == 0)
        found.append(model(inputs, masks))
    return found


def both(outputs, read):
    return torch.cat([read(output) for output in outputs]).detach()


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_subspaces_have_a_mark_for_every_feature(outputs, method):
    own = Figure().subplots()
    axes = subspaces(outputs, method=method, axes=own)
    assert axes is own
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    marks = {part.get_label(): part for part in axes.collections}
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert (
        texts == list(marks) == [f"{part} {m}" for m in ("text", "audio", "video") for part in "CP"]
    )
    present = {"text": 10, "audio": 9, "video": 8}
    for name, part in marks.items():
        assert len(part.get_offsets()) == present[name[2:]]
        assert bool(len(part.get_facecolors())) == (name[0] == "C")
    if method == "pca":  # Distances are those along two orthogonal directions.
        features = both(outputs, lambda x: x.common.pooled)[:, 0].numpy()
        drawn = np.asarray(marks["C text"].get_offsets())
        far, near = (np.linalg.norm(x - x[:, None], axis=2) for x in (features, drawn))
        assert (near <= far + 1e-5).all()
    few = subspaces(outputs, method="pca", samples=4).collections
    assert len(few[0].get_offsets()) == 4


def test_private_features_are_drawn_as_private(outputs):
    """What is moved, moves: of the first axis, which is theirs."""
    far = [x._replace(private=x.private._replace(pooled=x.private.pooled + 50)) for x in outputs]
    marks = {part.get_label(): part.get_offsets()[:, 0] for part in subspaces(far).collections}
    ends = [np.sign(x.mean()) for x in marks.values()]
    assert ends == [ends[0], -ends[0]] * 3


@pytest.mark.parametrize("part", ["common", "enhanced"])
def test_an_arrow_for_every_edge(outputs, part):
    axes = edge_graph(outputs, part=part)
    edges = both(outputs, lambda x: getattr(x, part).edges)
    whole = both(outputs, lambda x: x.present).all(dim=1)
    assert 0 < whole.sum() < len(whole)
    names = ["text", "audio", "video"]
    arrows = {arrow.get_label(): arrow for arrow in axes.patches}
    assert len(arrows) == 6
    texts = [text.get_text() for text in axes.texts]
    places = dict(zip(names, [text.get_position() for text in axes.texts[6:9]], strict=True))
    assert texts[6:9] == names
    for (p, source), (q, target) in ((a, b) for a in enumerate(names) for b in enumerate(names)):
        if p == q:
            continue
        weight = edges[whole, p, q].mean().item()
        arrow = arrows[f"{source}→{target}"]
        assert arrow.get_linewidth() == pytest.approx(0.6 + 8 * weight)
        assert f"{weight:.2f}" in texts
        start, end = arrow._posA_posB
        assert tuple(start) == places[source]
        assert tuple(end) == places[target]
    assert texts[-1] == "spread evenly: 0.17 each"


def test_edges_where_no_sample_has_all_modalities():
    torch.manual_seed(0)
    model = TDMER({"text": 3, "audio": 2, "video": 2}, 3, width=8, heads=2).eval()
    output = model({"text": torch.randn(5, 4, 3), "audio": torch.randn(5, 4, 2)})
    arrows = {arrow.get_label(): arrow for arrow in edge_graph(output).patches}
    weight = output.common.edges[:, 0, 1].mean().item()
    assert arrows.keys() == {"text→audio", "audio→text"}
    assert arrows["text→audio"].get_linewidth() == pytest.approx(0.6 + 8 * weight)


TASKS = [
    (Classification(3), torch.tensor([0, 1, 2, -100, 1, 0, 0, 2, 1, 1])),
    (Sentiment((-1, 0, 1)), torch.tensor([-1, 0.2, 0.9, math.nan, 0, -0.8, -3, 2, 0, 0.4])),
    (MultiLabel(3), torch.eye(3)[[0, 1, 2, 0, 1, 0, 0, 2, 1, 1]]),
]
TASKS[2][1][3] = math.nan


@pytest.mark.parametrize(("task", "labels"), TASKS)
def test_reliability_is_of_groups_of_equal_size(outputs, task, labels):
    axes = reliability(outputs, labels, task, groups=3)
    diagonal, *curves = axes.lines
    assert diagonal.get_slope() == 1
    assert [line.get_label() for line in curves] == ["common", "text", "audio", "video"]
    known = torch.arange(10) != 3
    there = both(outputs, lambda x: x.present)[:, 2] & known
    weight = both(outputs, lambda x: x.weights["video"])
    tcp = task.true_class_probability(both(outputs, lambda x: x.branch_logits["video"]), labels)
    order = [n for n in weight.argsort().tolist() if there[n]]
    parts = [order[:3], order[3:5], order[5:]] if len(order) == 7 else None
    expected = [[x[part].mean().item() for part in parts] for x in (weight, tcp)]
    for found, values in zip(curves[3].get_data(), expected, strict=True):
        assert list(found) == pytest.approx(values)
        assert max(values) < axes.get_xlim()[1] == axes.get_ylim()[1] <= 1


@pytest.mark.parametrize(("task", "labels"), TASKS)
def test_the_weight_of_a_branch_by_class(outputs, task, labels):
    axes = class_contributions(outputs, labels, task)
    counts = [tick.get_text().split("n = ")[1] for tick in axes.get_xticklabels()]
    assert counts == ["3", "4", "2"]
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert rows == ["common", "text", "audio", "video"]
    texts = np.array([text.get_text() for text in axes.texts]).reshape(4, 3)
    weight = both(outputs, lambda x: x.weights["video"])
    # Of the first class, 5 and 6; 0 and 6 have no video.
    assert texts[3, 0] == f"{weight[5]:.2f}"
    assert texts[0, 2] == f"{both(outputs, lambda x: x.weights['common'])[[2, 7]].mean():.2f}"
    assert axes.images[0].get_array()[0, 2] == pytest.approx(float(texts[0, 2]), abs=0.005)
    with pytest.raises(ValueError, match="labels must be one per sample, 10, got 9"):
        class_contributions(outputs, labels[1:], task)


def test_a_class_without_samples_is_left_empty(outputs):
    axes = class_contributions(outputs, torch.zeros(10, dtype=torch.int64), Classification(3))
    assert [bool(text.get_text()) for text in axes.texts] == [True, False, False] * 4


SCORED = Sentiment((-1, 0, 1)), lambda found: found.prediction
CHOSEN = Classification(3), lambda found: max(found.probabilities.values())


@pytest.mark.parametrize(("task", "read"), [SCORED, CHOSEN])
def test_a_step_is_what_its_absence_changes(task, read):
    torch.manual_seed(0)
    predictor = Predictor(TDMER({"text": 3, "audio": 2}, 3, width=8, heads=2), task)
    text = np.random.default_rng(0).normal(size=(4, 3))
    axes = step_contributions(predictor, {"text": text, "audio": np.ones(2)}, "text", words="abcd")
    heights = [bar.get_height() for bar in axes.patches]
    whole = predictor({"text": text, "audio": np.ones(2)})
    name = max(whole.probabilities, key=whole.probabilities.get)
    for step, height in enumerate(heights):
        left = predictor({"text": np.delete(text, step, axis=0), "audio": np.ones(2)})
        value = left.prediction if task is SCORED[0] else left.probabilities[name]
        assert height == pytest.approx(read(whole) - value, abs=1e-6)
        assert (axes.patches[step].get_hatch() is None) == (height >= 0)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list("abcd")


def test_steps_are_features_of_two_steps_or_more():
    model = TDMER({"text": 1, "audio": 2}, 3, width=8, heads=2)
    predictor = Predictor(model, Classification(3))
    for text in ([[3.0]], [3.0, 2.0], None, "not so bad"):
        with pytest.raises(ValueError, match="must be two steps or more"):
            step_contributions(predictor, {"text": text, "audio": np.ones(2)}, "text")
    with pytest.raises(ValueError, match="words must be one per step, 3, got 1"):
        step_contributions(predictor, {"text": [[3.0], [2.0], [3.0]]}, "text", words=["bad"])


def test_a_confusion_matrix_counts():
    pred, true = torch.tensor([0, 1, 1, 2, 1, 0]), torch.tensor([0, 0, 0, 2, -100, 2])
    axes = confusion_matrix(pred, true, classes=["glad", "$_$", "sad"])
    assert [text.get_text() for text in axes.texts] == list("120000101")
    shares = axes.images[0].get_array()
    assert shares.tolist() == [pytest.approx([1 / 3, 2 / 3, 0]), [0, 0, 0], [0.5, 0, 0.5]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "5 samples, accuracy 0.400"
    # Dark cells have light numbers.
    assert [text.get_color() for text in axes.texts[:2]] == ["black", "white"]
    with pytest.raises(ValueError, match=r"must be classes in \[0, 2\), got 2"):
        confusion_matrix(pred, true, classes=["glad", "sad"])
    with pytest.raises(ValueError, match="at least one label"):
        confusion_matrix(pred[:1], torch.tensor([-100]))


def test_scores_stand_over_the_true_ones():
    pred, true = np.array([1.0, -2.0, 0.5]), np.array([2.0, -1.5, math.nan])
    axes = predicted_scores(pred, true)
    assert axes.collections[0].get_offsets().tolist() == [[2.0, 1.0], [-1.5, -2.0]]
    assert lines(axes) == {"equal": [[-2.0, -2.0], [2.0, 2.0]]}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true score", "predicted score")
    assert axes.get_title().startswith("2 samples, MAE 0.750")
    with pytest.raises(ValueError, match="at least one label"):
        predicted_scores(pred[:1], np.array([math.nan]))


@pytest.mark.parametrize("draw", [subspaces, edge_graph])
def test_pictures_of_no_batch_are_refused(draw):
    with pytest.raises(ValueError, match="outputs must hold at least one batch, got none"):
        draw([])


def test_matplotlib_is_imported_when_a_picture_is_drawn():
    assert imported_by("import tdmer.viz") & {"torch", "matplotlib"} == {"torch"}
