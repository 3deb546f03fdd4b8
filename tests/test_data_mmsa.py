import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmer.data import load_mmsa
from tests.python2 import python2_pickle

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


def make_file():
    return {name: make_split() for name in ("train", "valid", "test")}


def load(tmp_path, content, dump=pickle.dumps, **options):
    path = tmp_path / "mosi.pkl"
    path.write_bytes(dump(content))
    return load_mmsa(path, **options)


def load_changed(tmp_path, options=None, **changes):
    """Read a file of one split in which keys have other values; None takes a key away."""
    split = {key: x for key, x in (make_split() | changes).items() if x is not None}
    return load(tmp_path, {"valid": split}, **(options or {}))["valid"]


def lengths(data, name):
    return tuple(data.lengths[name].tolist())


# What is read


@pytest.mark.parametrize("dump", [pickle.dumps, python2_pickle])
def test_reads_the_layout(tmp_path, dump):
    splits = load(tmp_path, make_file(), dump)
    assert list(splits) == ["train", "valid", "test"]
    for data in splits.values():
        assert data.dims == {"text": 5, "audio": 2, "video": 3}
        assert [lengths(data, name) for name in data.dims] == [TEXT, AUDIO, VISION]
        assert data.ids == ["v$_$1", "v$_$2", "w$_$1"]
        assert data.labels.dtype == torch.float32
        assert data.labels.tolist() == [1.5, 0.0, -2.0]
    for name, key in (("text", "text"), ("audio", "audio"), ("video", "vision")):
        expected = make_split()[key]
        for row, sample in enumerate(splits["train"]):
            steps = len(sample.inputs[name])
            np.testing.assert_array_equal(sample.inputs[name], expected[row, :steps])
            assert sample.inputs[name].dtype == torch.float32


def test_the_mask_decides_for_text_and_lengths_for_the_others(tmp_path):
    split = make_split()
    split["text"][0, 1] = 0
    split["text"][1, 3] = 0
    split["audio"][0, 2] = 0
    data = load_changed(tmp_path, text=split["text"], audio=split["audio"])
    # Zeros inside, and at the end of, a sequence of known length are data.
    assert lengths(data, "text") == TEXT
    assert lengths(data, "audio") == AUDIO
    assert data[0].inputs["text"][1].tolist() == [0.0] * 5
    assert data[0].inputs["audio"][2].tolist() == [0.0] * 2


def test_the_mask_may_be_floats(tmp_path):
    bert = make_split()["text_bert"].astype(np.float32)
    assert lengths(load_changed(tmp_path, text_bert=bert), "text") == TEXT


def test_without_lengths_zeros_at_the_end_are_pads_and_others_are_not(tmp_path):
    split = make_split()
    split["text"][1, 0] = 0
    split["text"][1, 2] = 0
    split["audio"][0, 2] = 0
    split["vision"][2, 1, 1:] = 0
    data = load_changed(
        tmp_path,
        text=split["text"],
        audio=split["audio"],
        vision=split["vision"],
        text_bert=None,
        audio_lengths=None,
        vision_lengths=None,
    )
    assert lengths(data, "text") == (2, 4, 1)
    assert lengths(data, "audio") == (2, 1, 0)
    assert lengths(data, "video") == (1, 2, 2)
    assert data[1].inputs["text"][2].tolist() == [0.0] * 5


def test_entries_that_are_not_finite_stay_and_are_no_pads(tmp_path):
    audio = make_split()["audio"]
    audio[1, 2] = np.nan, -np.inf
    data = load_changed(tmp_path, audio=audio, audio_lengths=None)
    assert lengths(data, "audio") == (3, 3, 0)
    assert data[1].inputs["audio"][2].isnan().tolist() == [True, False]


def test_arrays_without_lengths_are_aligned_to_the_words(tmp_path):
    audio = padded(TEXT, 4, 2)
    # Zeros at the first and the last word, as at the tokens that are no words; a missing modality.
    audio[1, [0, 3]] = 0
    audio[2] = 0
    data = load_changed(tmp_path, audio=audio, audio_lengths=None)
    assert lengths(data, "audio") == (2, 4, 0)
    assert data[1].inputs["audio"][[0, 3]].tolist() == [[0.0] * 2] * 2


def test_arrays_with_values_beyond_the_words_are_not_aligned(tmp_path):
    audio = padded((3, 2, 0), 4, 2)
    data = load_changed(tmp_path, audio=audio, audio_lengths=None)
    assert lengths(data, "audio") == (3, 2, 0)


def test_arrays_of_other_steps_than_the_words_are_not_aligned(tmp_path):
    data = load_changed(tmp_path, audio=padded((1, 3, 1), 3, 2), audio_lengths=None)
    assert lengths(data, "audio") == (1, 3, 1)


def test_pads_on_the_left(tmp_path):
    split = make_split()
    split["text"] = split["text"][:, ::-1].copy()
    split["text_bert"] = split["text_bert"][:, :, ::-1].copy()
    for name in ("audio", "vision"):
        split[name] = split[name][:, ::-1].copy()
    data = load_changed(tmp_path, **split)
    assert [lengths(data, name) for name in data.dims] == [TEXT, AUDIO, VISION]
    np.testing.assert_array_equal(data[0].inputs["text"], make_split()["text"][0, 1::-1])
    data = load_changed(tmp_path, **split | {"audio_lengths": None, "text_bert": None})
    assert [lengths(data, name) for name in data.dims] == [TEXT, AUDIO, VISION]
    np.testing.assert_array_equal(data[1].inputs["audio"], make_split()["audio"][1, :1])


def test_samples_padded_on_either_side(tmp_path):
    split = make_split()
    for name in ("text", "audio", "vision"):
        split[name][0] = split[name][0, ::-1].copy()
    split["text_bert"][0] = split["text_bert"][0, :, ::-1].copy()
    given = load_changed(tmp_path, **split)
    told = {"text_bert": None, "audio_lengths": None, "vision_lengths": None}
    found = load_changed(tmp_path, {"pads": "both"}, **split | told)
    for data in (given, found):
        assert [lengths(data, name) for name in data.dims] == [TEXT, AUDIO, VISION]
    for one, other in zip(given, found, strict=True):
        torch.testing.assert_close(one.inputs, other.inputs)


def test_zeros_may_be_data(tmp_path):
    split = make_split()
    untold = {"audio_lengths": None, "vision": padded((2, 3, 1), 4, 3), "vision_lengths": None}
    split |= untold
    # The mask is told; that the arrays are aligned would be a guess.
    data = load_changed(tmp_path, {"pads": "none"}, **split)
    assert lengths(data, "text") == TEXT
    assert lengths(data, "audio") == (3, 3, 3)
    assert lengths(data, "video") == (4, 4, 4)


def test_one_rule_for_all_splits(tmp_path):
    content = make_file()
    for split in content.values():
        del split["audio_lengths"], split["vision_lengths"]
        # The second has zeros at its last word, which it keeps where it is aligned.
        split["vision"] = padded((2, 3, 1), 4, 3)
        split["audio"] = padded((2, 1, 1), 3, 2)[:, ::-1].copy()
    # By itself this split would have its pads on the right.
    content["test"]["audio"] = padded((2, 3, 3), 3, 2)
    for split, data in load(tmp_path, content).items():
        assert lengths(data, "audio") == ((3, 3, 3) if split == "test" else (2, 1, 1))
        assert lengths(data, "video") == (2, 4, 1)
        assert list(data.dims) == ["text", "audio", "video"]
    content["valid"]["vision"][0, 2] = 1.0  # beyond its words: no split is aligned
    for split, data in load(tmp_path, content).items():
        assert lengths(data, "video") == ((3, 3, 1) if split == "valid" else (2, 3, 1))


def test_where_neither_side_wins_pads_are_on_the_right(tmp_path):
    vision = make_split()["vision"]
    vision[1, 0] = 0
    # One begins with zeros, one ends with them.
    data = load_changed(tmp_path, vision=vision, vision_lengths=None)
    assert lengths(data, "video") == VISION


@pytest.mark.parametrize("dtype", [float, int])
@pytest.mark.parametrize("as_array", [False, True])
def test_ragged_sequences(tmp_path, as_array, dtype):
    ragged = [np.ones((steps, 2), dtype) for steps in AUDIO]
    if as_array:
        ragged = np.array([*ragged, None], object)[:3]
    for steps in (list(AUDIO), None):
        data = load_changed(tmp_path, audio=ragged, audio_lengths=steps)
        assert lengths(data, "audio") == AUDIO
    text = [np.zeros((steps, 5)) for steps in TEXT]
    assert lengths(load_changed(tmp_path, text=text), "text") == TEXT


@pytest.mark.parametrize("dtype", [np.int32, np.uint64, np.float64])
def test_tokens_become_features(tmp_path, dtype):
    tokens = make_split()["text_bert"].astype(dtype)
    tokens[:, 0] = np.arange(12).reshape(3, 4)
    tokens[1, 0, 2] = 2**24 - 1
    data = load_changed(tmp_path, {"text": "text_bert"}, text_bert=tokens, text=None)
    assert data.dims == {"text": 3, "audio": 2, "video": 3}
    assert lengths(data, "text") == TEXT
    assert data[1].inputs["text"].tolist() == [[4, 1, 0], [5, 1, 0], [2**24 - 1, 1, 0], [7, 1, 0]]


@pytest.mark.parametrize("dtype", [np.int8, np.float16])
def test_small_tokens_become_features(tmp_path, dtype):
    data = load_changed(tmp_path, {"text": "text_bert"}, text_bert=np.ones((3, 3, 4), dtype))
    assert data[0].inputs["text"].tolist() == [[1, 1, 1]] * 4


def test_small_lengths_of_long_arrays(tmp_path):
    audio = padded(AUDIO, 300, 2)
    data = load_changed(tmp_path, audio=audio, audio_lengths=np.array(AUDIO, np.uint8))
    assert lengths(data, "audio") == AUDIO


def test_whole_numbers_are_features(tmp_path):
    data = load_changed(tmp_path, audio=padded(AUDIO, 3, 2, np.int16))
    np.testing.assert_array_equal(data[0].inputs["audio"], padded(AUDIO, 3, 2)[0])


def test_a_store_is_read_back_and_never_written_over(tmp_path):
    plain, stored = (load(tmp_path, make_file(), store=store) for store in (None, tmp_path / "s"))
    assert stored.keys() == plain.keys()
    for split, data in plain.items():
        assert stored[split].ids == data.ids
        for one, other in zip(data, stored[split], strict=True):
            torch.testing.assert_close(one.inputs, other.inputs)
    with pytest.raises(FileExistsError, match="store must be a new folder"):
        load_mmsa(tmp_path / "absent.pkl", store=tmp_path / "s")


def test_some_splits_and_modalities_will_do(tmp_path):
    splits = load(tmp_path, {"test": make_split(), "train": make_split()})
    assert list(splits) == ["train", "test"]
    assert load_changed(
        tmp_path, text=None, vision=None, audio=padded((1, 2, 3), 3, 2), audio_lengths=None
    ).dims == {"audio": 2}


def test_labels_under_other_keys(tmp_path):
    keys = ("regression_labels", "regression_labels_T", "classification_labels")
    changes = {"regression_labels_T": np.array([[0.25], [np.nan], [-1.0]])}
    data = load_changed(tmp_path, {"labels": keys}, **changes)
    assert data.labels.dtype == torch.float32
    assert data.labels[[0, 2]].tolist() == [[1.5, 0.25, 2.0], [-2.0, -1.0, 0.0]]
    assert data.labels[1].isnan().tolist() == [False, True, False]
    for labels in ("classification_labels", ["classification_labels"]):
        data = load_changed(tmp_path, {"labels": labels})
        assert data.labels.tolist() == [2.0, 1.0, 0.0]


def test_range_of_labels(tmp_path):
    wide = np.array([3.0, -3.0, 90.0])
    assert load_changed(tmp_path, {"label_range": None}, regression_labels=wide).labels[2] == 90
    wide[2] = 0
    assert load_changed(tmp_path, regression_labels=wide).labels.tolist() == [3, -3, 0]


def test_whole_labels_are_numbers_like_others(tmp_path):
    assert load_changed(tmp_path, regression_labels=[1, 0, -2]).labels.dtype == torch.float32


def test_missing_labels_stay_nan(tmp_path):
    data = load_changed(tmp_path, regression_labels=[0.5, float("nan"), 1])
    assert data.labels.isnan().tolist() == [False, True, False]


def test_ids_may_be_a_list_or_an_array_of_objects(tmp_path):
    for ids in (["a", "b", "c"], np.array(["a", "b", "c"], object), np.array([b"a", b"b", b"c"])):
        assert load_changed(tmp_path, id=ids).ids == ["a", "b", "c"]
    assert load_changed(tmp_path, id=[1, 1, 3]).ids == ["1", "1", "3"]


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
        assert data.dims == {"text": 384, "audio": 73, "video": 6}
        assert data.labels.abs().max() <= 3
        assert all(data.lengths[name].min() >= 1 for name in data.dims)
        assert len(set(data.ids)) == len(data)
    assert splits["train"].lengths["audio"][:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert splits["train"].lengths["text"][:5].tolist() == [8, 22, 11, 7, 8]
    assert (
        splits["train"].lengths["audio"].tolist()
        == load_mmsa(REAL, text="text_bert")["train"].lengths["audio"].tolist()
    )


# What is refused: name, change of a good file (in place, or a new content), options, part of the
# message


def put(**changes):
    return lambda content: content["valid"].update(changes)


def take(*keys):
    def change(content):
        for key in keys:
            del content["valid"][key]

    return change


def with_tokens(*place, value):
    tokens = make_split()["text_bert"].astype(np.float64)
    tokens[place] = value
    return put(text_bert=tokens)


def with_audio(*place, value=1.0):
    audio = make_split()["audio"]
    audio[place] = value
    return put(audio=audio)


def missing_everywhere(content):
    split = content["valid"]
    split["text_bert"][1, 1] = 0
    split["audio_lengths"][1] = split["vision_lengths"][1] = 0
    split["audio"][1] = split["vision"][1] = 0


ALL = {"label_range": (-np.inf, np.inf)}
TOKENS = {"text": "text_bert"}
T = {"labels": ("regression_labels", "regression_labels_T")}
ONE = r"sample 1 \('v\$_\$2'\)"
TWO = r"sample 2 \('w\$_\$1'\)"
BAD = [
    # The file and its splits.
    ("a list", lambda content: [1], {}, r"pkl must be a dict of \['train', 'valid', .* got list"),
    (
        "no split",
        lambda content: {},
        {},
        r"pkl must be a dict of \['train', 'valid', 'test'\], got dict",
    ),
    ("unknown split", lambda c: c | {"dev": {}}, {}, "must have splits of .* only, got 'dev'"),
    ("a split is a list", lambda c: {"train": []}, {}, r"\['train'\] must be a dict .* got list"),
    (
        "splits differ",
        take("text"),
        {},
        r"pkl must have the same .*got \{'text': 5, 'audio': 2, 'video",
    ),
    (
        "no modality",
        take("text", "audio", "vision"),
        {},
        r"pkl\['valid'\]: inputs must hold at least one modality, got none",
    ),
    (
        "lengths of one split",
        take("audio_lengths"),
        {},
        r"pkl must have 'audio_lengths' in all splits or in none, got it in \['train'\] of \['tr",
    ),
    (
        "tokens of one split",
        take("text_bert"),
        {},
        r"pkl must have 'text_bert' in all splits or in none, got it in \['train'\] of \['train",
    ),
    ("no ids", take("id"), {}, "must have the key 'id', got .'annotations', "),
    ("no labels", take("regression_labels"), {}, "must have the key 'regression_labels', got .'an"),
    ("no such labels", put(), T, "must have the key 'regression_labels_T', got .'annotations', "),
    (
        "everything missing",
        missing_everywhere,
        {},
        r"pkl\['valid'\]: inputs must have a step .*got none in sample 1 \('v\$_\$2'\): le",
    ),
    # Features.
    (
        "audio of rank 2",
        put(audio=np.zeros((3, 4))),
        {},
        r"pkl\['valid'\]\['audio'\] must be numbers of .*got float64 of shape \(3, 4\)",
    ),
    (
        "truncated audio",
        put(audio=np.zeros((2, 4, 1))),
        {},
        r"pkl\['valid'\]\['audio_lengths'\] must be 2 whole .*got int64 of shape \(3,\)",
    ),
    (
        "no steps",
        put(audio=np.zeros((3, 0, 2))),
        {},
        r"pkl\['valid'\]\['audio'\] must be numbers of .*got float64 of shape \(3, 0, 2\)",
    ),
    (
        "no features",
        put(text=np.zeros((3, 4, 0))),
        {},
        r"pkl\['valid'\]\['text'\] must be numbers of .*got float64 of shape \(3, 4, 0\)",
    ),
    (
        "audio is text",
        put(audio=np.full((3, 3, 2), "a")),
        {},
        r"pkl\['valid'\]\['audio'\] must be numbers of .*got <U1 of shape \(3, 3, 2\)",
    ),
    (
        "audio is a dict",
        put(audio={}),
        {},
        r"pkl\['valid'\]\['audio'\] must be numbers of .*got object of shape \(\)",
    ),
    (
        "large whole",
        put(audio=np.full((3, 3, 2), 2**25)),
        {},
        r"pkl\['valid'\]\['audio_lengths'\]\[1\] must not cut .*got 1, and values from step 0 to 2",
    ),
    (
        "another width",
        put(audio=np.ones((3, 3, 4)), audio_lengths=[3, 3, 3]),
        {},
        "'audio': 2.* in 'train' and .*'audio': 4",
    ),
    (
        "ragged of lists",
        put(audio=[[[1.0]]] * 3),
        {},
        r"pkl\['valid'\]\['audio'\]\[0\] must have 3 declared steps, got list",
    ),
    (
        "ragged, too few",
        put(audio=[np.ones((1, 2))]),
        {},
        r"pkl\['valid'\]\['audio'\]\[0\] must have 3 .*got float64 of shape \(1, 2\)",
    ),
    (
        "ragged of two widths",
        put(audio=[np.ones((3, 2)), np.ones((1, 1)), np.ones((0, 2))]),
        {},
        r"puts\['audio'\], sample 1 \('v\$_\$2'\), must have 2 .*got 1",
    ),
    (
        "ragged, with too few lengths",
        put(audio=[np.ones((steps, 2)) for steps in AUDIO], audio_lengths=[3, 1]),
        {},
        r"\['audio'\]\[2\] must have None declared steps, got float64 of shape \(0, 2\)",
    ),
    (
        "ragged, of another length",
        put(audio=[np.ones((3, 2)), np.ones((2, 2)), np.ones((0, 2))]),
        {},
        r"pkl\['valid'\]\['audio'\]\[1\] must have 1 .*got float64 of shape \(2, 2\)",
    ),
    (
        "ragged text, of another length than the mask",
        put(text=[np.ones((2, 5)), np.ones((3, 5)), np.ones((1, 5))]),
        {},
        r"pkl\['valid'\]\['text'\]\[1\] must have 4 .*got float64 of shape \(3, 5\)",
    ),
    # Lengths and masks.
    (
        "too few lengths",
        put(audio_lengths=[1, 2]),
        {},
        r"pkl\['valid'\]\['audio_lengths'\] must be 3 whole .*got int64 of shape \(2,\)",
    ),
    (
        "too long",
        put(audio_lengths=[1, 4, 2]),
        {},
        r"pkl\['valid'\]\['audio_lengths'\]\[1\] must be in \[0, 3\], got 4",
    ),
    (
        "negative",
        put(audio_lengths=[1, 2, -1]),
        {},
        r"pkl\['valid'\]\['audio_lengths'\]\[2\] must be in \[0, 3\], got -1",
    ),
    (
        "fractions",
        put(vision_lengths=[1.0, 1.5, 1.0]),
        {},
        r"pkl\['valid'\]\['vision_lengths'\] must be 3 whole .*got float64 of shape \(3,\)",
    ),
    (
        "nested",
        put(vision_lengths=[[1], [1], [1]]),
        {},
        r"pkl\['valid'\]\['vision_lengths'\] must be 3 whole .*got int64 of shape \(3, 1\)",
    ),
    (
        "lengths are a text",
        put(vision_lengths="abc"),
        {},
        r"pkl\['valid'\]\['vision_lengths'\] must be 3 whole .*got <U3 of shape \(\)",
    ),
    (
        "too short",
        with_audio(1, 2),
        {},
        r"pkl\['valid'\]\['audio_lengths'\]\[1\] must not cut .*got 1, and values from step 0 to 2",
    ),
    (
        "tokens are a list",
        put(text_bert=[1]),
        {},
        r"pkl\['valid'\]\['text_bert'\] must be numbers of .*got int64 of shape \(1,\)",
    ),
    (
        "no tokens at all",
        put(text_bert=None),
        TOKENS,
        r"pkl\['valid'\]\['text_bert'\] must be numbers of .*got object of shape \(\)",
    ),
    (
        "tokens are words",
        put(text_bert=np.full((3, 3, 4), "a")),
        {},
        r"pkl\['valid'\]\['text_bert'\] must be numbers of .*got <U1 of shape \(3, 3, 4\)",
    ),
    (
        "two rows",
        put(text_bert=np.ones((3, 2, 4))),
        {},
        r"pkl\['valid'\]\['text_bert'\] must be \(n, 3, t\) .*got float64 of shape \(3, 2, 4\)",
    ),
    (
        "rank 2",
        put(text_bert=np.ones((3, 3))),
        {},
        r"pkl\['valid'\]\['text_bert'\] must be numbers of .*got float64 of shape \(3, 3\)",
    ),
    (
        "no tokens",
        put(text_bert=np.ones((3, 3, 0))),
        {},
        r"pkl\['valid'\]\['text_bert'\] must be numbers of .*got float64 of shape \(3, 3, 0\)",
    ),
    (
        "more tokens",
        put(text_bert=np.ones((3, 3, 5))),
        {},
        r"pkl\['valid'\]\['text'\] must have the .*got float16 of shape \(3, 4, 5\)",
    ),
    (
        "mask with a hole",
        with_tokens(1, 1, 1, value=0),
        {},
        r"pkl\['valid'\]\['text_bert'\]\[:, 1\]\[1\] must have no hole .*got one",
    ),
    (
        "mask of weights",
        with_tokens(1, 1, 1, value=0.5),
        {},
        r"pkl\['valid'\]\['text_bert'\]\[:, 1\] must be 0 and 1 of .*got float64 of shape \(3, 4\)",
    ),
    # Labels and ids.
    (
        "labels in a table",
        put(regression_labels=np.zeros((3, 0))),
        {},
        r"pkl\['valid'\]: labels must be numbers of .*got float64 of shape \(3, 0\)",
    ),
    (
        "labels are words",
        put(regression_labels=np.array(["a"])),
        {},
        r"pkl\['valid'\]: labels must be numbers of .*got <U1 of shape \(1,\)",
    ),
    (
        "labels are bools",
        put(regression_labels=[True, False, True]),
        {},
        r"pkl\['valid'\]: labels must be numbers of .*got bool of shape \(3,\)",
    ),
    (
        "no label",
        put(regression_labels=[]),
        {},
        r"pkl\['valid'\]: labels must be numbers of .*got float64 of shape \(0,\)",
    ),
    (
        "infinite",
        put(regression_labels=[0.0, 1.0, np.inf]),
        {},
        r"pkl\['valid'\]: labels must be finite or NaN, got inf in sample 2",
    ),
    (
        "out of range",
        put(regression_labels=[0, -3.5, 0]),
        {},
        rf"\[-3, 3\] .* got -3.5 in {ONE}; cor",
    ),
    ("too high", put(regression_labels=[0, -1, 2]), {"label_range": (-2, 1.5)}, f"got 2 in {TWO}"),
    (
        "infinite in any range",
        put(regression_labels=[0, 0, np.inf]),
        ALL,
        r"pkl\['valid'\]: labels must be finite or NaN, got inf in sample 2",
    ),
    (
        "overflow in any range",
        put(regression_labels=[0, 0, 1e300]),
        ALL,
        r"pkl\['valid'\]: labels must be finite or NaN, got inf in sample 2",
    ),
    (
        "too few ids",
        put(id=["a", "b"]),
        {},
        r"pkl\['valid'\]: ids must be one per label, 3, got 2",
    ),
    (
        "ids of None",
        put(id=["a", None, "c"]),
        {},
        r"pkl\['valid'\]: ids\[1\] must be a str, bytes or int, got NoneType",
    ),
    (
        "ids are a number",
        put(id=7),
        {},
        r"pkl\['valid'\]: ids must be a list or array of names, got int",
    ),
    ("empty split", put(id=[]), {}, r"pkl\['valid'\]: ids must be one per label, 3, got 0"),
]


@pytest.mark.parametrize(
    ("change", "options", "message"), [pytest.param(*case, id=name) for name, *case in BAD]
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_files(tmp_path, change, options, message):
    content = {"train": make_split(), "valid": make_split()}
    changed = change(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, content if changed is None else changed, **options)
    assert str(caught.value).startswith(str(tmp_path / "mosi.pkl"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"text": "glove"},
            ValueError,
            r"text must be one of \['text', 'text_bert'\], got 'glove'",
        ),
        (
            {"labels": []},
            ValueError,
            r"pkl\['train'\] must have one label per sample in each of \[\]",
        ),
        ({"labels": [1]}, ValueError, r"pkl\['train'\] must have the key 1, got \['annotations'"),
        ({"label_range": (1, -1)}, ValueError, "two numbers, the lower first, got .1, -1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        load(tmp_path, make_file(), **options)
