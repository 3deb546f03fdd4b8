import pickle

import numpy as np
import pytest
import torch

from tdmer import MultiLabel
from tdmer.data import load_mult
from tests.python2 import python2_pickle

LENGTHS = {"text": (2, 3, 1), "audio": (3, 1, 4), "vision": (1, 2, 0)}
STEPS = {"text": 3, "audio": 4, "vision": 3}
WIDTHS = {"text": 3, "audio": 2, "vision": 1}


def sequence(name, number):
    steps, width = LENGTHS[name][number], WIDTHS[name]
    return np.arange(1, steps * width + 1, dtype=np.float32).reshape(steps, width) + number


def make_split(side="left"):
    split = {
        "labels": np.array([[[0.6]], [[-1.0]], [[3.0]]], np.float32),
        "id": np.array([[b"v_1", b"0.5", b"1.5"], [b"v_1", b"1.5", b"2"], [b"w", b"0", b"9"]]),
    }
    for name, lengths in LENGTHS.items():
        split[name] = np.zeros((3, STEPS[name], WIDTHS[name]), np.float32)
        for number, steps in enumerate(lengths):
            start = STEPS[name] - steps if side == "left" else 0
            split[name][number, start : start + steps] = sequence(name, number)
    return split


def load(tmp_path, content, dump=pickle.dumps, **options):
    path = tmp_path / "mosi_data.pkl"
    path.write_bytes(dump(content))
    return load_mult(path, **options)


def load_changed(tmp_path, **changes):
    """Read a file of one split in which keys have other values; None takes a key away."""
    split = {key: x for key, x in (make_split() | changes).items() if x is not None}
    return load(tmp_path, {"valid": split})["valid"]


# What is read


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dump", [pickle.dumps, python2_pickle])
def test_reads_the_layout(tmp_path, side, dump):
    splits = load(tmp_path, {"test": make_split(side), "train": make_split(side)}, dump)
    assert list(splits) == ["train", "test"]
    for data in splits.values():
        assert list(data.dims) == ["text", "audio", "video"]
        assert data.ids == ["v_1 0.5 1.5", "v_1 1.5 2", "w 0 9"]
        assert data.labels.dtype == torch.float32
        torch.testing.assert_close(data.labels, torch.tensor([0.6, -1.0, 3.0]))
        for number, sample in enumerate(data):
            for name, key in zip(("text", "audio", "video"), WIDTHS, strict=True):
                np.testing.assert_array_equal(sample.inputs[name], sequence(key, number))


def test_zeros_within_and_at_the_end_are_kept_and_infinities_too(tmp_path):
    audio = make_split()["audio"]
    audio[2, 1] = 0
    audio[0, 3] = 0
    audio[0, 2] = -np.inf
    data = load_changed(tmp_path, audio=audio)
    assert data.lengths["audio"].tolist() == [3, 1, 4]
    assert data[0].inputs["audio"][1:].tolist() == [[-np.inf] * 2, [0.0] * 2]


def test_where_neither_side_wins_pads_are_on_the_left(tmp_path):
    text = make_split()["text"]
    text[:, 2] = 0
    text[:, 1] = 1
    # Two begin with zeros, three end with them.
    assert load_changed(tmp_path, text=text).lengths["text"].tolist() == [2, 3, 2]


def test_the_side_is_that_of_all_splits_or_given(tmp_path):
    content = {"train": make_split(), "valid": make_split()}
    content["valid"]["audio"] = content["valid"]["audio"][:, ::-1].copy()
    lengths = {split: data.lengths["audio"] for split, data in load(tmp_path, content).items()}
    assert lengths["train"].tolist() == [3, 1, 4]
    assert lengths["valid"].tolist() == [4, 4, 4]
    both = load(tmp_path, content, pads="both")
    assert both["valid"].lengths["audio"].tolist() == [3, 1, 4]
    with pytest.raises(ValueError, match=r"pads must be one of .* got 'end'"):
        load(tmp_path, content, pads="end")


def test_any_modality_will_do(tmp_path):
    assert load_changed(tmp_path, text=None, vision=None).dims == {"audio": 2}


def test_pairs_of_states_become_labels_of_0_and_1(tmp_path):
    states = np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]], [[1, 0], [1, 0]]], np.float64)
    data = load_changed(tmp_path, labels=states, id=None)
    assert data.labels.tolist() == [[0, 1], [1, 1], [0, 0]]
    assert MultiLabel(2)(torch.zeros(3, 2), data.labels).isfinite().all()


def test_samples_without_ids_have_names_that_no_other_split_has(tmp_path):
    assert load_changed(tmp_path, id=None).ids == ["valid 0", "valid 1", "valid 2"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array(["a", "b", "c"]), ["a", "b", "c"]),
        (["a", 2, b"c"], ["a", "2", "c"]),
        (np.array([["a"], ["b"], ["c"]]), ["a", "b", "c"]),
        (
            np.array([["a", 0.5, 1], [b"b", 1.5, 2], ["c", 0.0, 3]], object),
            ["a 0.5 1", "b 1.5 2", "c 0.0 3"],
        ),
    ],
)
def test_forms_of_ids(tmp_path, ids, expected):
    assert load_changed(tmp_path, id=ids).ids == expected


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
def test_forms_of_labels(tmp_path, shape):
    labels = np.array([1, np.nan, -2]).reshape(shape)
    assert load_changed(tmp_path, labels=labels).labels.isnan().tolist() == [False, True, False]
    labels = np.array([1, 0, -2]).reshape(shape)
    assert load_changed(tmp_path, labels=labels).labels.dtype == torch.float32


def test_a_store(tmp_path):
    data = load(tmp_path, {"test": make_split()}, store=tmp_path / "store")["test"]
    assert (tmp_path / "store").is_dir()
    np.testing.assert_array_equal(data[1].inputs["text"], sequence("text", 1))


def test_range_of_labels_can_be_widened(tmp_path):
    split = make_split() | {"labels": np.array([5.0, 0.0, 1.0])}
    assert load(tmp_path, {"train": split}, label_range=None)["train"].labels[0] == 5.0


# What is refused: name, change of a good file (in place, or a new content), part of the message


def put(**changes):
    return lambda content: content["valid"].update(changes)


def take(key):
    def change(content):
        del content["valid"][key]

    return change


STATES = np.array([[[1, 0]], [[1, 1]], [[0, 1]]])
HERE = r"\['valid'\]"
BAD = [
    (
        "a list",
        lambda content: [1],
        r"pkl must be a dict of \['train', 'valid', 'test'\], got list",
    ),
    (
        "no split",
        lambda content: {},
        r"pkl must be a dict of \['train', 'valid', 'test'\], got dict",
    ),
    (
        "unknown split",
        lambda content: content | {"dev": {}},
        "must have splits of .* only, got 'dev'",
    ),
    ("a split is a list", lambda content: {"train": []}, r"\['train'\] must be a dict .* got list"),
    ("no labels", take("labels"), HERE + r" must have the key 'labels', got \['audio', 'id', "),
    (
        "no modality",
        lambda c: {"valid": {"labels": np.ones(1)}},
        r"pkl\['valid'\]: inputs must hold at least one modality, got none",
    ),
    (
        "splits differ",
        take("text"),
        r"pkl must have the same .*got \{'text': 3, 'audio': 2, 'video",
    ),
    (
        "labels are a text",
        put(labels="abc"),
        r"pkl\['valid'\]\['labels'\] must have shape .*got \(\)",
    ),
    (
        "labels are bools",
        put(labels=np.ones((3, 1, 1), bool)),
        r"pkl\['valid'\]: labels must be numbers of .*got bool of shape \(3,\)",
    ),
    (
        "labels are one number",
        put(labels=np.float64(1.0)),
        r"pkl\['valid'\]\['labels'\] must have shape .*got \(\)",
    ),
    (
        "a scalar array",
        put(labels=np.array(1.0)),
        r"pkl\['valid'\]\['labels'\] must have shape .*got \(\)",
    ),
    (
        "no label",
        put(labels=np.ones((0, 1, 1))),
        r"pkl\['valid'\]: labels must be numbers of .*got float64 of shape \(0,\)",
    ),
    (
        "labels of three",
        put(labels=np.ones((3, 4, 3))),
        r"\(n, 1, 1\) or \(n, k, 2\), got \(3, 4, 3",
    ),
    (
        "no states",
        put(labels=STATES),
        r"pkl\['valid'\]\['labels'\] must be pairs of one 1 and one 0, got others",
    ),
    (
        "even states",
        put(labels=STATES * 0 + 0.5),
        r"pkl\['valid'\]\['labels'\] must be pairs of one 1 and one 0, got others",
    ),
    (
        "half states",
        put(labels=STATES / 2),
        r"pkl\['valid'\]\['labels'\] must be pairs of one 1 and one 0, got others",
    ),
    ("label out of range", put(labels=np.array([0, 0, 3.5])), r"got 3.5 in sample 2 \('w 0 9'\)"),
    (
        "label infinite",
        put(labels=np.array([0, -np.inf, 0])),
        r"pkl\['valid'\]: labels must be finite or NaN, got inf in sample 1",
    ),
    ("too few ids", put(id=["a"]), r"pkl\['valid'\]: ids must be one per label, 3, got 1"),
    ("no ids", put(id=np.ones((0, 3))), r"pkl\['valid'\]: ids must be one per label, 3, got 0"),
    (
        "ids are a number",
        put(id=7),
        r"pkl\['valid'\]: ids must be a list or array of names, got int",
    ),
    (
        "ids are None",
        put(id=np.array([[None]] * 3)),
        r"pkl\['valid'\]: ids\[0\] must be a str, bytes or int, got NoneType",
    ),
    (
        "a list for text",
        put(text=[[1.0]]),
        r"pkl\['valid'\]\['text'\] must be numbers of .*got float64 of shape \(1, 1\)",
    ),
    (
        "rank 2",
        put(audio=np.ones((3, 2))),
        r"pkl\['valid'\]\['audio'\] must be numbers of .*got float64 of shape \(3, 2\)",
    ),
    (
        "truncated",
        put(vision=np.ones((2, 3, 1))),
        r"pkl\['valid'\]: inputs\['video'\] must hold one .*got 2",
    ),
    (
        "empty",
        put(vision=np.ones((3, 0, 1))),
        r"pkl\['valid'\]\['vision'\] must be numbers of .*got float64 of shape \(3, 0, 1\)",
    ),
    (
        "another width",
        put(vision=np.ones((3, 3, 2))),
        r"pkl must have the same .*got \{'text': 3, 'audio': 2, 'video",
    ),
    (
        "labels of another form",
        put(labels=np.array([[[1, 0]], [[1, 0]], [[0, 1]]])),
        r"'labels': \(\)\} in 'train' and .*'labels': \(1,\)\} in 'valid'",
    ),
    (
        "a sample of zeros",
        put(**{name: make_split()[name] * [[[1.0]], [[0.0]], [[1.0]]] for name in STEPS}),
        r"pkl\['valid'\]: inputs must have a step .*got none in sample 1 \('v_1 1\.5 2'\)",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), [pytest.param(*case, id=name) for name, *case in BAD]
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_files(tmp_path, change, message):
    content = {"train": make_split(), "valid": make_split()}
    changed = change(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, content if changed is None else changed)
    assert str(caught.value).startswith(str(tmp_path / "mosi_data.pkl"))


@pytest.mark.usefixtures("unchecked")
def test_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="label_range must be two numbers, the lower first"):
        load(tmp_path, {"train": make_split()}, label_range=(3, 3))
