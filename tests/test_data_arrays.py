import numpy as np
import pytest
import torch

from tdmer.data import describe, from_arrays, from_sequences

LENGTHS = {"audio": [2, 3, 0], "text": [4, 1, 2]}
WIDTHS = {"audio": 2, "text": 3}
STEPS = 4


def sequences():
    random = np.random.default_rng(0)
    return {
        name: [random.normal(size=(t, WIDTHS[name])).astype(np.float32) for t in lengths]
        for name, lengths in LENGTHS.items()
    }


def padded(side="right"):
    arrays = {name: np.zeros((3, STEPS, width), np.float32) for name, width in WIDTHS.items()}
    for name, parts in sequences().items():
        for row, part in enumerate(parts):
            start = 0 if side == "right" else STEPS - len(part)
            arrays[name][row, start : start + len(part)] = part
    return arrays


def check_same(data, expected=None):
    expected = expected or sequences()
    assert list(data.dims) == list(expected)
    for name, parts in expected.items():
        for row, part in enumerate(parts):
            found = data[row].inputs[name]
            assert found.dtype == torch.float32
            np.testing.assert_array_equal(found, part)


# Padded arrays


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_pads_are_taken_away(side, kind):
    arrays = padded(side)
    if kind == "torch":
        arrays = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
    check_same(from_arrays(arrays, [0.0, 1.0, 2.0]))
    check_same(from_arrays(arrays, [0.0, 1.0, 2.0], lengths=LENGTHS))
    lists = {name: list(lengths) for name, lengths in LENGTHS.items()}
    check_same(from_arrays(arrays, [0.0, 1.0, 2.0], lengths=lists))
    masks = {
        name: torch.as_tensor(np.arange(STEPS) < np.array(lengths)[:, None])
        for name, lengths in LENGTHS.items()
    }
    if side == "left":
        masks = {name: mask.flip(1) for name, mask in masks.items()}
    check_same(from_arrays(arrays, [0.0, 1.0, 2.0], masks=masks))
    check_same(from_arrays(arrays, [0.0, 1.0, 2.0], masks={"text": masks["text"].tolist()}))
    numbers = {"text": masks["text"].int().numpy()}
    check_same(from_arrays(arrays, [0.0, 1.0, 2.0], masks=numbers, lengths={"audio": [2, 3, 0]}))


def test_lengths_and_masks_keep_zeros_that_detection_takes_for_pads():
    x = padded()["text"]
    x[0, 3] = 0
    inputs = {"text": x}
    assert from_arrays(inputs, [0, 1, 2]).lengths["text"].tolist() == [3, 1, 2]
    lengths = {"text": torch.tensor([4, 1, 3])}
    assert from_arrays(inputs, [0, 1, 2], lengths=lengths).lengths["text"].tolist() == [4, 1, 3]


def test_masks_are_taken_as_they_are():
    x = np.arange(1.0, 13.0).reshape(3, 4, 1)
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], bool)
    data = from_arrays({"a": x}, [0, 1, 2], masks={"a": mask})
    check_same(data, {"a": [[[2.0], [3.0]], [[5.0]], [[12.0]]]})


def test_nothing_is_shared_with_the_arrays():
    arrays = padded()
    data = from_arrays(arrays, [0, 1, 2])
    arrays["text"][:] = 7
    check_same(data)


@pytest.mark.parametrize(
    "dtype", ["<f2", ">f4", "<f8", "u1", ">i4", torch.bfloat16, torch.float16, torch.int64]
)
def test_dtypes(dtype):
    x = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [3.0, 1.0]]])
    x = x.astype(dtype) if isinstance(dtype, str) else torch.tensor(x, dtype=dtype)
    check_same(from_arrays({"a": x}, [0, 1]), {"a": [[[1, 0]], [[0, 2], [3, 1]]]})
    check_same(
        from_sequences({"a": [x[0], x[1]]}, [0, 1]), {"a": [[[1, 0], [0, 0]], x[1].tolist()]}
    )


# Columns


def test_lists_of_arrays_tensors_and_lists():
    inputs = sequences()
    check_same(from_sequences(inputs, [0, 1, 2]))
    check_same(from_sequences({name: iter(parts) for name, parts in inputs.items()}, [0, 1, 2]))
    tensors = {name: [torch.from_numpy(x) for x in parts] for name, parts in inputs.items()}
    check_same(from_sequences(tensors, [0, 1, 2]))
    lists = {name: [x.tolist() for x in parts] for name, parts in inputs.items()}
    check_same(from_sequences(lists, [0, 1, 2]))
    rows = {name: [list(x) for x in parts] for name, parts in inputs.items()}
    check_same(from_sequences(rows, [0, 1, 2]))


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, [], np.empty((0, 2))])
def test_missing_items(missing):
    inputs = sequences()
    inputs["audio"][2] = missing
    check_same(from_sequences(inputs, [0, 1, 2]))


def test_zeros_are_values():
    data = from_sequences({"a": [np.zeros((2, 1)), np.zeros((3, 1))]}, [0, 1])
    assert data.lengths["a"].tolist() == [2, 3]


def test_columns_of_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    inputs = sequences()
    frame = pandas.DataFrame(
        {
            "audio": [*inputs["audio"][:2], None],
            "text": inputs["text"],
            "label": [0.5, None, -1.0],
            "class": [2, 0, 1],
            "name": ["a", "b", "c"],
        },
        index=[7, 3, 5],
    )
    data = from_sequences(frame[["audio", "text"]].to_dict("series"), frame["label"])
    check_same(data)
    assert data.labels.isnan().tolist() == [False, True, False]
    assert data.ids == ["0", "1", "2"]
    data = from_sequences({"text": frame["text"]}, frame["class"], ids=frame["name"])
    assert data.labels.tolist() == [2, 0, 1]
    assert data.labels.dtype == torch.int64
    assert data.ids == ["a", "b", "c"]
    assert from_sequences({"text": frame["text"]}, frame["class"], ids=frame.index).ids == list(
        "735"
    )
    table = from_sequences({"text": frame["text"]}, frame[["label", "class"]])
    assert table.labels[[0, 2]].tolist() == [[0.5, 2.0], [-1.0, 1.0]]


def test_columns_of_pandas_with_its_own_missing_value():
    pandas = pytest.importorskip("pandas")
    column = pandas.Series([np.ones((2, 1)), pandas.NA, np.ones((1, 1))], dtype=object)
    other = [np.ones((1, 1))] * 3
    for labels in (
        pandas.Series([1.5, pandas.NA, 0.0], dtype="Float64"),
        pandas.Series([1.5, pandas.NA, 0.0], dtype=object),
    ):
        data = from_sequences({"a": column, "b": other}, labels)
        assert data.lengths["a"].tolist() == [2, 0, 1]
        assert data.labels.isnan().tolist() == [False, True, False]
        assert data.labels[0] == 1.5


def test_columns_of_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    inputs = sequences()
    lists = {name: [x.tolist() for x in parts] for name, parts in inputs.items()}
    lists["audio"][2] = None
    frame = pandas.DataFrame(lists | {"label": [0, 1, 2]})
    frame.to_parquet(tmp_path / "data.parquet")
    frame = pandas.read_parquet(tmp_path / "data.parquet")
    # Arrays of arrays, no lists any more.
    assert frame["text"][0].dtype == object
    check_same(from_sequences({name: frame[name] for name in lists}, frame["label"]))


def test_columns_of_arrow():
    pyarrow = pytest.importorskip("pyarrow")
    lists = {name: [x.tolist() for x in parts] for name, parts in sequences().items()}
    lists["audio"][2] = None
    table = pyarrow.table(lists | {"label": [0.5, None, 1.0], "id": ["a", "b", "c"]})
    data = from_sequences({n: table[n] for n in lists}, table["label"], ids=table["id"])
    check_same(data)
    assert data.labels.isnan().tolist() == [False, True, False]
    assert data.ids == ["a", "b", "c"]


@pytest.mark.parametrize("form", [None, "numpy", "torch", "pandas"])
def test_columns_of_hugging_face(form):
    datasets = pytest.importorskip("datasets")
    columns = {name: [x.tolist() for x in parts] for name, parts in sequences().items()}
    columns |= {"label": [0.5, 2.0, -1.0], "class": [0, 2, 1], "name": ["a", "b", "c"]}
    table = datasets.Dataset.from_dict(columns).with_format(form)
    inputs = {name: table[name] for name in LENGTHS}
    data = from_sequences(inputs, table["label"], ids=table["name"])
    check_same(data)
    assert data.labels.tolist() == [0.5, 2.0, -1.0]
    assert data.ids == ["a", "b", "c"]
    assert from_sequences(inputs, table["class"]).labels.tolist() == [0, 2, 1]


# Labels and ids


@pytest.mark.parametrize(
    ("labels", "expected", "dtype"),
    [
        ([0.5, None, 2], [0.5, None, 2.0], torch.float32),
        ((1, 0, -100), [1, 0, -100], torch.int64),
        (np.array([[1], [0], [2]], np.uint8), [1, 0, 2], torch.int64),
        (torch.tensor([1.0, 0.5, 2.0], dtype=torch.bfloat16), [1.0, 0.5, 2.0], torch.float32),
        ([torch.tensor(1), torch.tensor(0), torch.tensor(2)], [1, 0, 2], torch.int64),
        ([[0, 1], [1, 1], [0, 0]], [[0, 1], [1, 1], [0, 0]], torch.int64),
        (np.array([None, 1.0, 2.0], object), [None, 1.0, 2.0], torch.float32),
        ([5.0, -7.0, 100.0], [5.0, -7.0, 100.0], torch.float32),
    ],
)
@pytest.mark.parametrize("make", [from_arrays, from_sequences])
def test_labels(make, labels, expected, dtype):
    data = make(padded(), labels)
    assert data.labels.dtype == dtype
    found = [None if x != x else x for x in data.labels.tolist()]
    assert found == expected


@pytest.mark.parametrize(
    "labels",
    [
        ["sad", "glad", None],
        ("sad", "glad", float("nan")),
        np.array(["sad", "glad", None], object),
    ],
)
@pytest.mark.parametrize("make", [from_arrays, from_sequences])
def test_names_of_classes_become_numbers(make, labels):
    data = make(padded(), labels, classes=("angry", "glad", "sad"))
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [2, 1, -100]
    assert data.classes == data[1:].classes == ["angry", "glad", "sad"]
    assert make(padded(), [2, 1, 0]).classes is None


@pytest.mark.parametrize("make", [from_arrays, from_sequences])
def test_without_labels_all_are_missing(make):
    data, named = make(padded()), make(padded(), classes=["glad", "sad"])
    assert data.labels.isnan().tolist() == [True] * 3
    assert (data.labels.dtype, named.labels.dtype) == (torch.float32, torch.int64)
    assert named.labels.tolist() == [-100] * 3
    assert {m: x.shape[1] for m, x in data[1].inputs.items()} == WIDTHS
    assert "train: 3 samples" in str(describe({"train": data}))


@pytest.mark.parametrize("kind", ["array", "pandas", "arrow"])
def test_columns_of_names(kind):
    labels = np.array(["sad", "glad", "sad"])
    if kind == "pandas":
        labels = pytest.importorskip("pandas").Series(labels, dtype="category")
    elif kind == "arrow":
        labels = pytest.importorskip("pyarrow").array(labels)
    data = from_arrays(padded(), labels, classes=np.array(["glad", "sad"]))
    assert data.labels.tolist() == [1, 0, 1]
    assert [type(name) for name in data.classes] == [str, str]


@pytest.mark.parametrize(
    "ids",
    [
        ["é", "2", "c"],
        [b"\xc3\xa9", 2, "c"],
        np.array(["é", "2", "c"]),
        np.array([b"\xe9", np.int64(2), np.str_("c")], object),
        ("é", "2", "c"),
    ],
)
@pytest.mark.parametrize("make", [from_arrays, from_sequences])
def test_ids(make, ids):
    found = make(padded(), [0, 1, 2], ids=ids).ids
    assert found == ["é", "2", "c"]
    assert {type(name) for name in found} == {str}


def test_ids_may_be_a_tensor():
    assert from_arrays(padded(), [0, 1, 2], ids=torch.tensor([4, 5, 6])).ids == ["4", "5", "6"]


# What is refused: name, what changes of good arguments, error, part of the message

BAD_BOTH = [
    ("inputs is a list", {"inputs": [1]}, TypeError, "inputs must map modality names .* got list"),
    (
        "no modality",
        {"inputs": {}},
        ValueError,
        r"inputs must hold at least 1 different names, got \[\]",
    ),
    ("name with a dot", {"inputs": {"a.b": [1]}}, ValueError, "inputs must not .* got 'a.b'"),
    ("name is a number", {"inputs": {1: [1]}}, TypeError, r"inputs must be .* strings, got \[1\]"),
    ("labels is a number", {"labels": 3}, TypeError, "labels must be a column, .* got int"),
    ("labels is a text", {"labels": "abc"}, TypeError, "labels must be a column, .* got str"),
    (
        "labels are names",
        {"labels": ["a", "b", "c"]},
        ValueError,
        r"labels must be numbers, or names of classes=\[...\], got <U1 of shape \(3,\)",
    ),
    (
        "an unknown class",
        {"labels": np.array(["a", "b", "c"]), "classes": ["a", "b"]},
        ValueError,
        r"labels must be of \['a', 'b'\], got 'c' in sample 2",
    ),
    (
        "numbers and classes",
        {"classes": ["a", "b"]},
        ValueError,
        r"labels must be of \['a', 'b'\], got 0.0 in sample 0",
    ),
    (
        "lists and classes",
        {"labels": [["a"], ["b"], ["a"]], "classes": ["a", "b"]},
        ValueError,
        r"labels must be of \['a', 'b'\], got \['a'\] in sample 0",
    ),
    ("one class", {"classes": ["a"]}, ValueError, r"two or more different strings, got \['a'\]"),
    (
        "equal classes",
        {"classes": np.array(["a", "b", "a"])},
        ValueError,
        r"classes must be two or more different strings, got \['a', 'b', 'a'\]",
    ),
    ("classes of numbers", {"classes": [0, 1]}, ValueError, r"different strings, got \[0, 1\]"),
    ("classes are a text", {"classes": "ab"}, TypeError, "classes must be a column, .* got str"),
    (
        "labels are bools",
        {"labels": [True, False, True]},
        ValueError,
        r"labels must be numbers of .*got bool of shape \(3,\)",
    ),
    (
        "ragged labels",
        {"labels": [[0], [0, 1], [1]]},
        ValueError,
        "labels must have entries of one length, got list",
    ),
    (
        "labels of rank 3",
        {"labels": np.zeros((3, 1, 1))},
        ValueError,
        r"labels must be numbers of .*got float64 of shape \(3, 1, 1\)",
    ),
    (
        "labels without entries",
        {"labels": np.zeros((3, 0))},
        ValueError,
        r"labels must be numbers of .*got float64 of shape \(3, 0\)",
    ),
    (
        "no labels",
        {"labels": []},
        ValueError,
        r"labels must be numbers of .*got float64 of shape \(0,\)",
    ),
    (
        "scalar label",
        {"labels": np.array(1.0)},
        ValueError,
        r"labels must be numbers of .*got float64 of shape \(\)",
    ),
    (
        "infinite label",
        {"labels": [0.0, np.inf, 1.0]},
        ValueError,
        "labels must be finite or NaN, got inf in sample 1",
    ),
    (
        "label beyond float32",
        {"labels": [0.0, 1.0, 1e300]},
        ValueError,
        "labels must be finite or NaN, got inf in sample 2",
    ),
    ("ids is a text", {"ids": "abc"}, TypeError, "ids must be a column, such as a list, got str"),
    (
        "ids of other things",
        {"ids": ["a", None, "c"]},
        ValueError,
        r"ids\[1\] must .* got NoneType",
    ),
    ("ids are bools", {"ids": ["a", True, "c"]}, ValueError, r"ids\[1\] must be .* got bool"),
    ("ids are floats", {"ids": ["a", "b", 2.5]}, ValueError, r"ids\[2\] must be .* got float"),
    ("too few ids", {"ids": ["a", "b"]}, ValueError, "ids must be one per label, 3, got 2"),
    ("no ids", {"ids": []}, ValueError, "ids must be one per label, 3, got 0"),
]


def change(inputs, **changed):
    """Good inputs with another value for a modality."""
    return {"inputs": inputs() | changed}


def ragged_with(item):
    return change(sequences, text=[sequences()["text"][0], item, sequences()["text"][2]])


zero = padded()
for _array in zero.values():
    _array[1] = 0
both_ends = padded()["text"]
both_ends[:, 0] = 0

BAD_ARRAYS = [
    (
        "a list",
        change(padded, text=[1, 2, 3]),
        r"inputs\['text'\] must be numbers of .*got int64 of shape \(3,\)",
    ),
    (
        "rank 4",
        change(padded, text=np.ones((3, 4, 1, 1))),
        r"inputs\['text'\] must be numbers of shape \(n, f\) or \(n, t, f\), f at least 1, got "
        r"float64 of shape \(3, 4, 1, 1\)",
    ),
    ("vectors without features", change(padded, text=np.ones((3, 0))), r"of shape \(3, 0\)"),
    (
        "a mask of steps for vectors",
        change(padded, text=np.ones((3, 4))) | {"masks": {"text": np.ones((3, 4))}},
        r"masks\['text'\] must be 0 and 1 of shape \(3, 1\), got float64 of shape \(3, 4\)",
    ),
    (
        "a mask of samples for steps",
        {"masks": {"text": np.ones(3)}},
        r"got float64 of shape \(3,\)",
    ),
    (
        "unknown pads",
        {"pads": "end"},
        r"pads must be one of \['detect', 'left', 'right', 'both', 'none'\], got 'end'",
    ),
    (
        "text",
        change(padded, text=np.full((3, 4, 1), "a")),
        r"inputs\['text'\] must be numbers of .*got <U1 of shape \(3, 4, 1\)",
    ),
    (
        "complex",
        change(padded, text=np.ones((3, 4, 1), complex)),
        r"inputs\['text'\] must be numbers of .*got complex128 of shape \(3, 4, 1\)",
    ),
    (
        "bool",
        change(padded, text=torch.ones(3, 4, 1) > 0),
        r"inputs\['text'\] must be numbers of .*got bool of shape \(3, 4, 1\)",
    ),
    (
        "too few rows",
        change(padded, text=padded()["text"][:2]),
        r"inputs\['text'\] must hold one sequence per label, 3, got 2",
    ),
    (
        "no steps",
        change(padded, text=np.ones((3, 0, 2))),
        r"inputs\['text'\] must be numbers of .*got float64 of shape \(3, 0, 2\)",
    ),
    (
        "no features",
        change(padded, text=np.ones((3, 4, 0))),
        r"inputs\['text'\] must be numbers of .*got float64 of shape \(3, 4, 0\)",
    ),
    (
        "a side in doubt",
        change(padded, text=both_ends),
        "2 samples begin and 1 end with zeros; pass",
    ),
    (
        "nothing real",
        {"inputs": zero},
        r"inputs must have a step .*got none in sample 1 \('1'\): leave ",
    ),
    ("unknown mask", {"masks": {"video": []}}, r"masks must name modalities of .* got 'video'"),
    (
        "unknown length",
        {"lengths": {"video": []}},
        r"lengths must name modalities of .* got 'video'",
    ),
    (
        "mask and lengths",
        {"masks": {"text": np.ones((3, 4))}, "lengths": {"text": [4, 4, 4]}},
        r"inputs\['text'\] must have lengths or a mask, got both",
    ),
    ("mask of another shape", {"masks": {"text": np.ones((3, 3))}}, r"shape \(3, 4\), got float64"),
    ("mask of words", {"masks": {"text": np.full((3, 4), "a")}}, r"masks\['text'\] must be .* <U1"),
    (
        "ragged mask",
        {"masks": {"text": [[1], [1, 0], [1]]}},
        r"masks\['text'\] must have entries of one length, got list",
    ),
    (
        "additive mask",
        {"masks": {"text": np.full((3, 4), -1e4)}},
        r"masks\['text'\] must be 0 and 1 of .*got float64 of shape \(3, 4\)",
    ),
    (
        "mask with a hole",
        {"masks": {"text": np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0] * 4])}},
        "hole",
    ),
    (
        "lengths of another count",
        {"lengths": {"text": [4, 1]}},
        r"lengths\['text'\] must be 3 whole numbers, got int64 of shape \(2,\)",
    ),
    (
        "fractions",
        {"lengths": {"text": [4.0, 1.5, 2.0]}},
        r"lengths\['text'\] must .* whole numbers",
    ),
    (
        "negative length",
        {"lengths": {"text": [4, -1, 2]}},
        r"lengths\['text'\]\[1\] must be in \[0, 4\], got -1",
    ),
    (
        "too long",
        {"lengths": {"text": [4, 1, 5]}},
        r"lengths\['text'\]\[2\] must be in \[0, 4\], got 5",
    ),
    (
        "too short",
        {"lengths": {"text": [4, 1, 1]}},
        r"lengths\['text'\]\[2\] must not cut .*got 1, and values from step 0 to 1",
    ),
]

BAD_SEQUENCES = [
    (
        "too few items",
        change(sequences, text=[[[1.0]]]),
        r"inputs\['text'\] must hold one sequence per label, 3, got 1",
    ),
    (
        "only missing",
        change(sequences, text=[None] * 3),
        r"inputs\['text'\], sample 0 \('0'\), must be numbers of .*got float32 of shape \(0, 0\)",
    ),
    (
        "one axis",
        ragged_with(np.ones(3)),
        r"inputs\['text'\], sample 1 \('1'\), must be numbers of .*got float64 of shape \(3,\)",
    ),
    (
        "a number",
        ragged_with(1.0),
        r"inputs\['text'\], sample 1 \('1'\), must be numbers of .*got float64 of shape \(\)",
    ),
    (
        "a text",
        ragged_with("abc"),
        r"inputs\['text'\], sample 1 \('1'\), must be numbers of .*got <U3 of shape \(\)",
    ),
    (
        "words",
        ragged_with([["a"]]),
        r"inputs\['text'\], sample 1 \('1'\), must be numbers of .*got <U1 of shape \(1, 1\)",
    ),
    (
        "None inside",
        ragged_with([[1.0, None, 2.0]]),
        r"inputs\['text'\], sample 1 \('1'\), must be numbers of .*got object of shape \(1, 3\)",
    ),
    ("no features", ragged_with([[], []]), r"f at least 1, got float64 of shape \(2, 0\)"),
    (
        "ragged",
        ragged_with([[1.0, 2.0, 3.0], [1.0]]),
        r"inputs\['text'\]\[1\] must have entries of one length, got list",
    ),
    (
        "ragged array",
        ragged_with(np.array([np.ones(3), np.ones(2)], object)),
        r"inputs\['text'\]\[1\] must have entries of one length, got list",
    ),
    (
        "another width",
        ragged_with(np.ones((1, 2))),
        r"inputs\['text'\], sample 1 \('1'\), must have 3 .*got 2",
    ),
    ("no steps of another width", ragged_with(np.ones((0, 2))), "must have 3 features, .* got 2"),
    (
        "a dict",
        ragged_with({"a": 1}),
        r"inputs\['text'\], sample 1 \('1'\), must be numbers of .*got object of shape \(\)",
    ),
    (
        "nothing real",
        {"inputs": {"text": [[[1.0]], None, [[1.0]]]}},
        r"inputs must have a step .*got none in sample 1 \('1'\): leave ",
    ),
]


def named(cases):
    return [pytest.param(*case, id=name) for name, *case in cases]


@pytest.mark.parametrize(("changes", "error", "message"), named(BAD_BOTH))
@pytest.mark.parametrize("make", [from_arrays, from_sequences])
@pytest.mark.usefixtures("unchecked")
def test_wrong_labels_and_ids(make, changes, error, message):
    with pytest.raises(error, match=message):
        make(**({"inputs": padded(), "labels": [0.0, 1.0, 2.0]} | changes))


@pytest.mark.parametrize(("changes", "message"), named(BAD_ARRAYS))
@pytest.mark.usefixtures("unchecked")
def test_wrong_arrays(changes, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(**({"inputs": padded(), "labels": [0.0, 1.0, 2.0]} | changes))


@pytest.mark.parametrize(("changes", "message"), named(BAD_SEQUENCES))
@pytest.mark.usefixtures("unchecked")
def test_wrong_sequences(changes, message):
    with pytest.raises(ValueError, match=message):
        from_sequences(**({"inputs": sequences(), "labels": [0.0, 1.0, 2.0]} | changes))


@pytest.mark.parametrize("column", ["abc", 7, {"a": 1}, None, np.array(1.0), torch.tensor(1.0)])
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_column(column):
    with pytest.raises(TypeError, match=r"inputs\['text'\] must be a column, such as a list, got"):
        from_sequences(change(sequences, text=column)["inputs"], [0, 1, 2])


@pytest.mark.usefixtures("unchecked")
def test_masked_arrays_hide_their_values():
    x = np.ma.masked_array(np.ones((3, 4, 3)))
    with pytest.raises(
        TypeError, match=r"inputs\['text'\] must be a plain array, got a masked one"
    ):
        from_arrays({"text": x}, [0, 1, 2])
    with pytest.raises(TypeError, match=r"inputs\['text'\]\[1\] must be a plain array, got a mask"):
        from_sequences({"text": [x.data[0], x[1], x.data[2]]}, [0, 1, 2])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_sample_of_zeros_lacks_the_modality_unless_its_length_or_mask_is_given(steps):
    x = np.ones((2, steps, 2))
    x[1] = 0
    inputs, labels = {"text": x, "audio": np.ones((2, 1, 1))}, [0.0, 1.0]
    assert from_arrays(inputs, labels).lengths["text"].tolist() == [steps, 0]
    given = from_arrays(inputs, labels, lengths={"text": [steps, steps]})
    assert given.lengths["text"].tolist() == [steps, steps]
    given = from_arrays(inputs, labels, masks={"text": np.ones((2, steps))})
    assert given.lengths["text"].tolist() == [steps, steps]
    assert from_arrays(inputs, labels, pads="none").lengths["text"].tolist() == [steps, steps]


def test_pads_may_be_on_either_side():
    x = np.zeros((4, 3, 1))
    x[0, :2] = x[1, 1:] = x[2] = x[3, :1] = 1.0
    with pytest.raises(ValueError, match="1 samples begin and 2 end with zeros; pass lengths"):
        from_arrays({"text": x}, np.zeros(4))
    for pads, expected in (("both", [2, 2, 3, 1]), ("right", [2, 3, 3, 1]), ("left", [3, 2, 3, 3])):
        data = from_arrays({"text": x}, np.zeros(4), pads=pads)
        assert data.lengths["text"].tolist() == expected
    masks = {"text": x[..., 0]}
    data = from_arrays({"text": x}, np.zeros(4), masks=masks, pads="none")
    assert data.lengths["text"].tolist() == [2, 2, 3, 1]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_vectors_are_sequences_of_one_step(kind):
    x = np.random.default_rng(0).normal(size=(4, 3))
    x[2] = 0
    audio, labels = np.ones((4, 2)), np.zeros(4)
    for options in (
        {},
        {"pads": "none"},
        {"lengths": {"text": [1, 1, 0, 1]}},
    ):
        given = from_arrays({"text": kind(x), "audio": kind(audio)}, labels, **options)
        expected = from_arrays({"text": x[:, None], "audio": audio[:, None]}, labels, **options)
        for one, two in zip(given, expected, strict=True):
            torch.testing.assert_close(one.inputs, two.inputs)
    for mask in (np.array([1, 0, 1, 1]), np.array([[True], [False], [True], [True]])):
        data = from_arrays({"text": x, "audio": audio}, labels, masks={"text": kind(mask)})
        assert data.lengths["text"].tolist() == [1, 0, 1, 1]
        assert data.lengths["audio"].tolist() == [1] * 4


@pytest.mark.parametrize("name", ["lengths", "masks"])
@pytest.mark.parametrize("value", [[], 0, np.ones((3, 4))])
@pytest.mark.usefixtures("unchecked")
def test_lengths_and_masks_are_mappings(name, value):
    with pytest.raises(TypeError, match=f"{name} must map modality names to"):
        from_arrays(padded(), [0, 1, 2], **{name: value})
