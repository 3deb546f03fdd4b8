import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmer.data import describe, load_mmsa

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "mosi.pkl"
TEXT, AUDIO, VISION = (2, 4, 1), (3, 1, 0), (1, 2, 2)


def padded(lengths, longest, width, dtype=np.float32):
    x = np.zeros((len(lengths), longest, width), dtype)
    for row, steps in enumerate(lengths):
        x[row, :steps] = np.arange(1, 1 + steps * width).reshape(steps, width) + row
    return x


def make_split():
    text_bert = np.zeros((3, 3, 4), np.int32)
    for row, steps in enumerate(TEXT):
        text_bert[row, 1, :steps] = 1
    return {
        "raw_text": np.array(["a", "b", "c"]),
        "id": np.array(["v$_$1", "v$_$2", "w$_$1"]),
        "text": padded(TEXT, 4, 5, np.float16),
        "text_bert": text_bert,
        "audio": padded(AUDIO, 3, 2),
        "vision": padded(VISION, 2, 3, np.float64),
        "audio_lengths": list(AUDIO),
        "vision_lengths": np.array(VISION),
        "annotations": ["Positive", "Neutral", "Negative"],
        "classification_labels": np.array([2.0, 1.0, 0.0], np.float32),
        "regression_labels": np.array([1.5, 0.0, -2.0], np.float64),
    }


def load(tmp_path, **changes):
    """Read a file whose split ``valid`` is changed; None takes a key away."""
    content = {name: make_split() for name in ("train", "valid", "test")}
    for key, value in changes.items():
        if value is None:
            del content["valid"][key]
        else:
            content["valid"][key] = value
    path = tmp_path / "mosi.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    return load_mmsa(path)


def lengths(data, name):
    return tuple(data.lengths[name].tolist())


# What is read


def test_reads_the_layout(tmp_path):
    splits = load(tmp_path)
    assert list(splits) == ["train", "valid", "test"]
    for data in splits.values():
        assert data.dims == {"text": 5, "audio": 2, "vision": 3}
        assert [lengths(data, name) for name in data.dims] == [TEXT, AUDIO, VISION]
        assert data.ids == ["v$_$1", "v$_$2", "w$_$1"]
        assert data.labels.dtype == torch.float32
        assert data.labels.tolist() == [1.5, 0.0, -2.0]
    for name in ("text", "audio", "vision"):
        expected = make_split()[name]
        for row, sample in enumerate(splits["train"]):
            steps = len(sample.inputs[name])
            np.testing.assert_array_equal(sample.inputs[name], expected[row, :steps])
            assert sample.inputs[name].dtype == torch.float32


def test_the_mask_decides_for_text_and_lengths_for_the_others(tmp_path):
    split = make_split()
    split["text"][0, 1] = 0
    split["text"][1, 3] = 0
    split["audio"][0, 2] = 0
    data = load(tmp_path, text=split["text"], audio=split["audio"])["valid"]
    # Zeros inside, and at the end of, a sequence of known length are data.
    assert lengths(data, "text") == TEXT
    assert lengths(data, "audio") == AUDIO
    assert data[0].inputs["text"][1].tolist() == [0.0] * 5
    assert data[0].inputs["audio"][2].tolist() == [0.0] * 2


def test_the_mask_may_be_floats(tmp_path):
    bert = make_split()["text_bert"].astype(np.float32)
    assert lengths(load(tmp_path, text_bert=bert)["valid"], "text") == TEXT


def test_without_lengths_zeros_at_the_end_are_pads_and_others_are_not(tmp_path):
    split = make_split()
    split["text"][1, 0] = 0
    split["text"][1, 2] = 0
    split["audio"][0, 2] = 0
    split["vision"][2, 1, 1:] = 0
    data = load(
        tmp_path,
        text=split["text"],
        audio=split["audio"],
        vision=split["vision"],
        text_bert=None,
        audio_lengths=None,
        vision_lengths=None,
    )["valid"]
    assert lengths(data, "text") == (2, 4, 1)
    assert lengths(data, "audio") == (2, 1, 0)
    assert lengths(data, "vision") == (1, 2, 2)
    assert data[1].inputs["text"][2].tolist() == [0.0] * 5


def test_entries_that_are_not_finite_stay_and_are_no_pads(tmp_path):
    audio = make_split()["audio"]
    audio[1, 2] = np.nan, -np.inf
    data = load(tmp_path, audio=audio, audio_lengths=None)["valid"]
    assert lengths(data, "audio") == (3, 3, 0)
    assert data[1].inputs["audio"][2].isnan().tolist() == [True, False]
    assert "audio: 2 features, 0/3/3 steps (min/median/max), missing in 1, 2 entries" in describe(
        {"valid": data}
    )


def test_missing_labels_stay_nan(tmp_path):
    data = load(tmp_path, regression_labels=[0.5, float("nan"), 1])["valid"]
    assert data.labels.isnan().tolist() == [False, True, False]


def test_ids_may_be_a_list_or_an_array_of_objects(tmp_path):
    for ids in (["a", "b", "c"], np.array(["a", "b", "c"], object)):
        assert load(tmp_path, id=ids)["valid"].ids == ["a", "b", "c"]


@pytest.mark.skipif(not REAL.exists(), reason="the real data are not at ../shared/data")
def test_real_file():
    splits = load_mmsa(REAL)
    assert {name: len(data) for name, data in splits.items()} == {
        "train": 1284,
        "valid": 229,
        "test": 686,
    }
    signs = {
        name: [int((data.labels.sign() == sign).sum()) for sign in (-1, 0, 1)]
        for name, data in splits.items()
    }
    assert signs == {"train": [552, 53, 679], "valid": [92, 13, 124], "test": [379, 30, 277]}
    for data in splits.values():
        assert data.dims == {"text": 384, "audio": 73, "vision": 6}
        assert data.labels.abs().max() <= 3
        assert all(data.lengths[name].min() >= 1 for name in data.dims)
        assert len(set(data.ids)) == len(data)
    assert splits["train"].lengths["audio"][:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert splits["train"].lengths["text"][:5].tolist() == [8, 22, 11, 7, 8]


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"mosi\.pkl must be a dict of \['train', 'valid', 'test'\], got list"),
        (
            {"train": {}, "test": {}},
            r"mosi\.pkl must have the key 'valid', got \['test', 'train'\]",
        ),
        (
            {"train": [], "valid": {}, "test": {}},
            r"mosi\.pkl\['train'\] must be a dict of \['text', 'audio', 'vision', .*got list",
        ),
    ],
)
def test_wrong_files(tmp_path, content, message):
    path = tmp_path / "mosi.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_mmsa(path)


@pytest.mark.parametrize("key", ["text", "audio", "vision", "regression_labels", "id"])
def test_missing_keys_are_named(tmp_path, key):
    message = rf"mosi\.pkl\['valid'\] must have the key '{key}', got \['annotations', "
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **{key: None})


def mask_with_a_hole():
    bert = make_split()["text_bert"]
    bert[1, 1] = 1, 0, 1, 0
    return bert


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "audio",
            np.zeros((3, 4)),
            r"array of shape \(3, t, f\), .* got float64 of shape \(3, 4\)",
        ),
        (
            "audio",
            np.zeros((2, 4, 1)),
            r"of shape \(3, t, f\), .* got float64 of shape \(2, 4, 1\)",
        ),
        ("audio", np.zeros((3, 4, 1), int), r"floating-point array .* got int64"),
        ("audio", [[[1.0]]] * 3, "floating-point array .* got list"),
        ("text", np.zeros((3, 4, 0)), r"must be a valid split: inputs\['text'\]\[0\] must have"),
        (
            "text_bert",
            np.zeros((3, 3, 5)),
            r"shape \(3, 3, 4\), .* got float64 of shape \(3, 3, 5\)",
        ),
        ("text_bert", np.zeros((3, 3, 4), "U1"), "array of numbers .* got <U1"),
        ("text_bert", [1], "array of numbers .* got list"),
        ("text_bert", mask_with_a_hole(), "ones, then zeros, got another in sample 1"),
        ("audio_lengths", [1, 2], "must be 3 lengths, got 2"),
        ("audio_lengths", [1, 4, 2], r"in \[0, 3\], the steps of 'audio', got 4 in sample 1"),
        ("audio_lengths", [1, 2, -1], r"in \[0, 3\], the steps of 'audio', got -1 in sample 2"),
        ("vision_lengths", [1.0, 1.0, 1.0], "list or array of whole numbers, got float64 of shape"),
        ("vision_lengths", [[1], [1], [1]], "list or array of whole numbers, got list"),
        ("vision_lengths", "abc", "list or array of whole numbers, got str"),
        ("regression_labels", np.zeros((3, 1)), r"array of numbers, got float64 of shape \(3, 1\)"),
        ("regression_labels", np.array(["a"]), "array of numbers, got <U1"),
        ("regression_labels", [], "at least one number, none infinite, got none"),
        ("regression_labels", [0.0, 1.0, np.inf], "none infinite, got inf in sample 2"),
        ("id", ["a", "b"], "must be a valid split: ids must be one per label, 3, got 2"),
        ("id", [1, 2, 3], r"must be a valid split: ids\[0\] must be a str, got int"),
        ("id", 7, "must be a list or array of names, got int"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_values_name_file_split_and_key(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, **{key: value})
    assert f"{tmp_path / 'mosi.pkl'}['valid']" in str(caught.value)
    assert key in str(caught.value)


def test_nested_lists_are_not_built_up(tmp_path):
    bomb = [0.0]
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(ValueError, match="list or array of numbers, got list"):
        load(tmp_path, regression_labels=bomb)
    with pytest.raises(ValueError, match=r"floating-point array of shape .* got list"):
        load(tmp_path, text=bomb)
