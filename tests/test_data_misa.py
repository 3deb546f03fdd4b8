import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmer.data import load_misa
from tests.python2 import python2_pickle

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "mosi_valid_wordaligned.pkl"
LENGTHS = (2, 4, 1)
EMBEDDINGS = np.arange(20.0).reshape(10, 2)


def make_samples(kind="misa"):
    samples = []
    for number, steps in enumerate(LENGTHS):
        visual = np.arange(steps * 3, dtype=np.float32).reshape(steps, 3) + number
        acoustic = -np.arange(steps * 2, dtype=np.float32).reshape(steps, 2)
        words = [f"word{place}" for place in range(steps)]
        features = (words, visual, acoustic)
        if kind == "misa":
            features = (np.arange(steps) + number, visual, acoustic, words)
        label = np.array([[(2.4, -0.6, 0.0)[number]]], np.float32)
        samples.append((features, label, f"video[{number}]"))
    return samples


def write(tmp_path, content, name="train.pkl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 2))
    return path


# What is read


@pytest.mark.parametrize("kind", ["misa", "mag"])
@pytest.mark.parametrize("dump", [pickle.dumps, python2_pickle])
def test_reads_both_layouts(tmp_path, kind, dump):
    splits = load_misa(write(tmp_path, dump(make_samples(kind))))
    assert list(splits) == ["train"]
    data = splits["train"]
    assert data.dims == {"audio": 2, "video": 3}
    assert data.ids == ["video[0]", "video[1]", "video[2]"]
    torch.testing.assert_close(data.labels, torch.tensor([2.4, -0.6, 0.0]))
    for sample, (features, _, _) in zip(data, make_samples(), strict=False):
        np.testing.assert_array_equal(sample.inputs["video"], features[1])
        np.testing.assert_array_equal(sample.inputs["audio"], features[2])


@pytest.mark.parametrize("table", [EMBEDDINGS, torch.from_numpy(EMBEDDINGS)])
def test_embeddings_make_text(tmp_path, table):
    data = load_misa(write(tmp_path, make_samples()), embeddings=table)["train"]
    assert data.dims == {"text": 2, "audio": 2, "video": 3}
    assert data[1].inputs["text"].tolist() == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]


def test_a_file_per_split_or_one_of_all(tmp_path):
    files = {"train": make_samples(), "valid": make_samples()[:2]}
    paths = {name: write(tmp_path, content, f"{name}.pkl") for name, content in files.items()}
    for splits in (load_misa(paths), load_misa(write(tmp_path, files, "all.pkl"))):
        assert {name: len(data) for name, data in splits.items()} == {"train": 3, "valid": 2}


@pytest.mark.parametrize(
    "label",
    [
        np.array([[-0.6, 9.0, 0, 0, 0, 0, 0]]),
        np.array([-0.6]),
        np.float32(-0.6),
        -0.6,
        [-0.6, 1.0],
    ],
)
def test_the_first_column_is_the_sentiment(tmp_path, label):
    samples = make_samples()
    samples[1] = (samples[1][0], label, samples[1][2])
    data = load_misa(write(tmp_path, samples))["train"]
    assert data.labels.dtype == torch.float32
    assert data.labels.shape == (3,)
    assert data.labels[1].item() == pytest.approx(-0.6)


def test_every_step_is_real(tmp_path):
    samples = make_samples()
    samples[1][0][1][:] = 0
    samples[2][0][2][:] = np.nan
    data = load_misa(write(tmp_path, samples))["train"]
    assert data.lengths["video"].tolist() == data.lengths["audio"].tolist() == list(LENGTHS)
    assert data[2].inputs["audio"].isnan().all()


def test_a_store(tmp_path):
    path = write(tmp_path, make_samples())
    data = load_misa(path, store=tmp_path / "store")["train"]
    assert (tmp_path / "store").is_dir()
    torch.testing.assert_close(data[1].inputs, load_misa(path)["train"][1].inputs)


def test_range_of_labels_can_be_widened(tmp_path):
    samples = make_samples()
    samples[0] = (samples[0][0], 5.0, "a")
    assert load_misa(write(tmp_path, samples), label_range=None)["train"].labels[0] == 5.0
    assert load_misa(write(tmp_path, samples), label_range=(-5, 5))["train"].labels[0] == 5.0


@pytest.mark.skipif(not REAL.exists(), reason="the real data are not at ../shared/data")
def test_real_file():
    data = load_misa({"valid": REAL})["valid"]
    assert len(data) == len(set(data.ids)) == 229
    assert data.dims == {"audio": 74, "video": 47}
    assert [int((data.labels.sign() == sign).sum()) for sign in (-1, 0, 1)] == [92, 13, 124]
    assert data.lengths["audio"].tolist() == data.lengths["video"].tolist()
    assert (data.lengths["audio"].min(), data.lengths["audio"].max()) == (2, 44)


# What is refused: name, change of good samples (in place, or a new content), options, part of the
# message


def put(*places, value):
    """Write a value into a sample: tuples become lists on the way."""

    def change(samples):
        def replaced(x, places):
            if not places:
                return value
            x = list(x)
            x[places[0]] = replaced(x[places[0]], places[1:])
            return x

        return replaced(samples, places)

    return change


LOOKUP = {"embeddings": EMBEDDINGS}
SAMPLE = r"train\.pkl\[1\]"
NAMED = r"sample 1 \('video\[1\]'\)"
BAD = [
    ("a number", lambda samples: 7, {}, r"train\.pkl must be a list of .* samples, got int"),
    ("None", lambda samples: None, {}, r"train\.pkl must be a list of .* samples, got NoneType"),
    ("no sample", lambda samples: [], {}, "pkl must be a list of one or more samples, got list"),
    ("a split of None", lambda s: {"dev": None}, {}, r"pkl\['dev'\] must be a list .* NoneType"),
    ("a dict for a sample", put(1, value={}), {}, SAMPLE + r" must be \(features, .* got dict"),
    ("two parts", put(1, value=(1, 2)), {}, r"pkl\[1\] must be \(features, .*got tuple"),
    (
        "features of two parts",
        put(1, 0, value=[1, 2]),
        {},
        r"pkl\[1\] must be \(features, .*got list",
    ),
    (
        "features are an array",
        put(1, 0, value=np.ones(3)),
        {},
        r"pkl\[1\] must be \(features, .*got list",
    ),
    (
        "words are a text",
        put(1, 0, 0, value="abcd"),
        {},
        r"pkl\[1\] must be \(features, .*got list",
    ),
    (
        "words are a table",
        put(1, 0, 0, value=np.ones((4, 1))),
        {},
        r"pkl\[1\] must be \(features, .*got list",
    ),
    (
        "visual is a list",
        put(1, 0, 1, value=[[1.0]] * 4),
        {},
        r"s\['video'\], sample 1 \('video\[1\]'\), must have 3 .*got 1",
    ),
    (
        "visual has one axis",
        put(1, 0, 1, value=np.ones(4)),
        {},
        r"\['video'\], sample 1 \('video\[1\]'\), must be numbers .*got float64 of shape \(4,\)",
    ),
    ("visual is text", put(1, 0, 1, value=np.full((4, 3), "a")), {}, f"{NAMED}, .* got <U1"),
    (
        "another width",
        put(1, 0, 2, value=np.ones((4, 3))),
        {},
        r"s\['audio'\], sample 1 \('video\[1\]'\), must have 2 .*got 3",
    ),
    (
        "no features",
        put(0, 0, 2, value=np.ones((2, 0))),
        {},
        r"\['audio'\], sample 0 \('video\[0\]'\), must be .*got float64 of shape \(2, 0\)",
    ),
    (
        "another length",
        put(1, 0, 1, value=np.ones((3, 3))),
        {},
        r"pkl video\[1\] must have 4 declared steps, got float64 of shape \(3, 3\)",
    ),
    (
        "no step",
        put(1, 0, value=(np.arange(0), np.ones((0, 3)), np.ones((0, 2)), [])),
        {},
        r"pkl: inputs must have a step .*got none in sample 1 \('video\[1\]'\):",
    ),
    (
        "label is text",
        put(1, 1, value="good"),
        {},
        r"pkl: labels must be numbers of .*got <U32 of shape \(3,\)",
    ),
    (
        "label is None",
        put(1, 1, value=None),
        {},
        r"pkl: labels must be numbers of .*got object of shape \(3,\)",
    ),
    (
        "label is empty",
        put(1, 1, value=np.ones((1, 0))),
        {},
        "pkl: ids must be one per label, 2, got 3",
    ),
    (
        "label out of range",
        put(1, 1, value=4.0),
        {},
        rf"\[-3, 3\] or NaN, got 4 in {NAMED}; correct",
    ),
    (
        "label is infinite",
        put(1, 1, value=-np.inf),
        {"label_range": None},
        "pkl: labels must be finite or NaN, got inf in sample 1",
    ),
    (
        "segment is None",
        put(1, 2, value=None),
        {},
        r"pkl: ids\[1\] must be a str, bytes or int, got NoneType",
    ),
    (
        "MAG with embeddings",
        put(1, 0, 0, value=["a"] * 4),
        LOOKUP,
        r"pkl\[1\]\[0\]\[0\] must be word ids .*got \['a', 'a', 'a', 'a'\]",
    ),
    (
        "word ids are floats",
        put(1, 0, 0, value=np.ones(4)),
        LOOKUP,
        r"pkl\[1\]\[0\]\[0\] must be word ids .*got array\(\[1\., 1\., 1\., 1\.\]\)",
    ),
    (
        "word id too large",
        put(1, 0, 0, value=np.arange(4) + 7),
        LOOKUP,
        r"pkl\[1\]\[0\]\[0\] must be word ids .*got array\(\[ 7,  8,  9, 10\]\)",
    ),
    (
        "word id negative",
        put(1, 0, 0, value=np.arange(4) - 1),
        LOOKUP,
        r"pkl\[1\]\[0\]\[0\] must be word ids .*got array\(\[-1,  0,  1,  2\]\)",
    ),
    (
        "embeddings of words",
        lambda x: x,
        {"embeddings": ["a"]},
        r"embeddings must be numbers of .*got <U1 of shape \(1,\)",
    ),
    ("embeddings of rank 1", lambda x: x, {"embeddings": np.ones(3)}, r"got float64 of shape \(3,"),
    (
        "splits differ",
        lambda x: {"a": x, "b": [((x[0][0][0], x[0][0][2], x[0][0][2]), 0, "a")]},
        {},
        "same mod",
    ),
]


@pytest.mark.parametrize(
    ("change", "options", "message"), [pytest.param(*case, id=name) for name, *case in BAD]
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_files(tmp_path, change, options, message):
    path = write(tmp_path, change(make_samples()))
    with pytest.raises(ValueError, match=message) as caught:
        load_misa(path, **options)
    assert "embeddings" in options or str(caught.value).startswith(str(path))


def test_a_file_of_no_split(tmp_path):
    with pytest.raises(ValueError, match=r"path must hold at least one split, got .*train.pkl"):
        load_misa(write(tmp_path, {}))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": {}}, ValueError, r"path must hold at least one split, got \{\}"),
        ({"label_range": (3, -3)}, ValueError, "two numbers, the lower first, got .3, -3"),
        ({"label_range": (1, 2, 3)}, ValueError, "label_range must be two numbers"),
        ({"label_range": 3}, TypeError, r"object of type 'int' has no len\(\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        load_misa(**({"path": write(tmp_path, make_samples())} | options))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_misa({"train": tmp_path / "absent.pkl"})
