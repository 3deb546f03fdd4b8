"""The pictures show what they are given, under the names that they promise."""

import math

import pytest

from tests.test_import import imported_by

pytest.importorskip("matplotlib", reason="pictures need the extra 'viz'")

from tdmer.prediction import Contribution, Prediction
from tdmer.viz import contributions, training_curves


def row(epoch, **changes):
    parts = {
        "train": {"total": 9.0, "task": 2.0 - epoch, "con": 0.0, "f": 3.0},
        "valid": {"mae": 1.5 - epoch / 4, "corr": 0.5, "f1_non0": 0.6},
        "weights": {"common": 0.3, "text": 0.4 + epoch / 10},
    }
    return {"epoch": epoch, **parts, **changes}


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


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
        assert {text.get_text() for text in axes.get_legend().get_texts()} == lines(axes).keys()


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


def test_matplotlib_is_imported_when_a_picture_is_drawn():
    assert imported_by("import tdmer.viz") & {"torch", "matplotlib"} == {"torch"}
