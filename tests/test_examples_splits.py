"""The examples deal data out so that no speaker is on both sides, and say what does not go."""

import importlib.util
import pickle
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmer.data import MultimodalDataset, from_arrays, load_mmsa, write_store

pytest.importorskip("accelerate", reason="the examples need the extra 'examples'")

from tests.test_examples import EXAMPLES, load, write_mmsa, write_npz

REAL = Path(__file__).parents[2] / "shared" / "data" / "emotions_face_voice.npz"


@pytest.fixture(scope="module")
def splits():
    spec = importlib.util.spec_from_file_location("example_splits", EXAMPLES / "splits.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "small.npz")


def arrays(path):
    with np.load(path, allow_pickle=False) as content:
        return dict(content)


def groups(data):
    return {name: set(part.groups) for name, part in data.items()}


def test_an_npz_is_read_as_it_stands(splits, npz):
    data = splits.load_splits(npz, label="emotion", group="actor", split="folds:4/1")
    content = arrays(npz)
    assert sum(map(len, data.values())) == len(content["emotion"])
    for part in data.values():
        assert part.dims == {"face": 3, "voice": 2}
        assert part.labels.dtype == torch.int64
        for sample, group in zip(part, part.groups, strict=True):
            number = int(sample.id)
            assert sample.label == content["emotion"][number]
            assert group == content["actor"][number]
            np.testing.assert_array_equal(sample.inputs["face"][0], content["face"][number])
            # Padded with zeros: they are no steps.
            assert len(sample.inputs["face"]) == 1
            assert len(sample.inputs["voice"]) == 2 + number % 2
    # A single step of zeros is one.
    assert not content["face"][0].any()


def test_lengths_are_those_of_the_samples(splits, npz):
    data = splits.load_splits(npz, label="emotion", group="actor", split="folds:4/1")
    joined = data["train"].join(data["valid"])
    assert len(joined) > len(data["train"])
    for part in (*data.values(), joined, joined.only(["voice"]), joined.take([5, 0, 3])):
        assert part.lengths.keys() == part.dims.keys()
        for m, found in part.lengths.items():
            assert found.tolist() == [len(sample.inputs[m]) for sample in part]
    assert len(set(joined.lengths["voice"].tolist())) == 2


def test_modalities_may_be_left_out(splits, npz):
    options = {"label": "emotion", "group": "actor", "split": "folds:4/0"}
    data = splits.load_splits(npz, **options, modalities=["voice"])
    assert data["train"].dims == {"voice": 2}
    assert data["train"][0].inputs.keys() == {"voice"}
    both = splits.load_splits(npz, **options)["train"]
    assert both.only(["face"])[0].inputs.keys() == {"face"}
    # Without the group it would be a modality.
    with pytest.raises(
        ValueError, match=r"inputs\['actor'\].*--label, --group and --modalities say"
    ):
        splits.load_splits(npz, label="emotion", split="folds:4/0")
    alone = splits.load_splits(npz, label="emotion", split="folds:4/0", modalities=["face"])
    assert Counter(alone["train"].groups).most_common(1)[0][1] == 1


def test_groups_are_normalised_by_themselves(splits, npz, tmp_path):
    data = splits.load_splits(
        npz, label="emotion", group="actor", split="folds:4/0", normalize_groups=True
    )
    for part in data.values():
        for actor in set(part.groups):
            own = [x for x, group in zip(part, part.groups, strict=True) if group == actor]
            for modality in part.dims:
                values = torch.cat([x.inputs[modality] for x in own])
                torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]))
                torch.testing.assert_close(values.std(0, correction=0).mean(), torch.tensor(1.0))
    # Every sample of an npz without groups is one of its own, and this one has a single step.
    options = {"label": "emotion", "modalities": ["face"], "split": "folds:4/0"}
    with pytest.raises(ValueError, match="one of 'face' in group"):
        splits.load_splits(npz, **options, normalize_groups=True)
    named = splits.load_splits(
        npz, label="emotion", group="actor", split="folds:4/0", normalize_groups=["voice"]
    )
    for x, y, z in zip(
        named["test"],
        data["test"],
        splits.load_splits(npz, label="emotion", group="actor", split="folds:4/0")["test"],
        strict=True,
    ):
        assert x.inputs["voice"].equal(y.inputs["voice"])
        assert x.inputs["face"].equal(z.inputs["face"])
    # What is left out, as --choose-modalities may have left it out of a run, is not looked for.
    without = splits.load_splits(npz, **options, normalize_groups=["voice"])
    assert without["test"].dims.keys() == {"face"}
    # The splits of a file, of which each is normalised without the others.
    path = write_mmsa(tmp_path / "mmsa.pkl")
    own, raw = splits.load_splits(path, normalize_groups=True), splits.load_splits(path)
    for name, part in own.items():
        assert part.ids == raw[name].ids
        values = torch.cat([x.inputs["audio"] for x in part]).double()
        torch.testing.assert_close(
            values.mean(0), torch.zeros_like(values.mean(0)), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("fold", range(4))
def test_folds_are_every_fourth_group(splits, npz, fold):
    data = splits.load_splits(npz, label="emotion", group="actor", split=f"folds:4/{fold}")
    actors = sorted(set(arrays(npz)["actor"].tolist()))
    assert groups(data) == {
        "test": set(actors[fold::4]),
        "valid": set(actors[(fold + 1) % 4 :: 4]),
        "train": set(actors[(fold + 2) % 4 :: 4]) | set(actors[(fold + 3) % 4 :: 4]),
    }
    assert [len(found) for found in groups(data).values()] == [8, 4, 4]
    assert not splits.shared_groups(data)


def test_random_splits_keep_groups_together_and_the_sizes_of_the_file(splits, tmp_path):
    rng = np.random.default_rng(0)
    content, sizes = {}, {"train": 130, "valid": 23, "test": 69}
    for split, count in sizes.items():
        # Videos of uneven length, as they come.
        videos = np.sort(rng.integers(count // 6, size=count))
        x = rng.normal(size=(count, 2, 3)).astype(np.float32)
        content[split] = {
            "text": x,
            "audio": x,
            "regression_labels": x[:, 0, 0].clip(-3, 3),
            "id": [f"{split}_{video}$_${clip}" for clip, video in enumerate(videos)],
        }
    path = tmp_path / "videos.pkl"
    path.write_bytes(pickle.dumps(content))
    own = splits.load_splits(path)
    found = [splits.load_splits(path, split=f"random:{seed}") for seed in (1, 1, 2)]
    for data in found:
        assert not splits.shared_groups(data)
        ids = [name for part in data.values() for name in part.ids]
        assert sorted(ids) == sorted(name for part in own.values() for name in part.ids)
        for split, count in sizes.items():
            assert abs(len(data[split]) - count) <= 1
        # The label stays with its sample.
        for sample in data["test"]:
            assert sample.label == sample.inputs["text"][0, 0].clamp(-3, 3)
    assert groups(found[0]) == groups(found[1]) != groups(found[2])


def test_without_splits_of_its_own_a_file_is_halved_and_quartered(splits, npz):
    data = splits.load_splits(npz, label="emotion", group="actor", split="random:0")
    assert [len(found) for found in groups(data).values()] == [8, 4, 4]
    with pytest.raises(
        ValueError, match=r"has no splits: --split folds:4/0 or random:0 makes some"
    ):
        splits.load_splits(npz, label="emotion", group="actor")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("03bSnISJMiM$_$12", "03bSnISJMiM"),
        ("_dI--eQ6qVU[3]", "_dI--eQ6qVU"),
        ("2iD-tVS8NPw_11", "2iD-tVS8NPw"),
        ("video_0001$_$0002", "video_0001"),
        ("_dI--eQ6qVU 0.5 1.25", "_dI--eQ6qVU"),  # as MulT's parts are joined
        ("test 12", "valid test 12"),
        ("12", "valid 12"),
    ],
)
def test_the_group_of_an_id_is_its_video(splits, name, group):
    assert splits._group("valid", name) == group


def test_the_splits_of_a_file_are_taken_as_they_are(splits, tmp_path):
    path = write_mmsa(tmp_path / "small.pkl")
    own, data = load_mmsa(path), splits.load_splits(path)
    assert data.keys() == own.keys()
    for split, part in own.items():
        assert data[split].ids == part.ids
        assert torch.equal(data[split].labels, part.labels)
    assert not splits.shared_groups(data)
    content = pickle.loads(path.read_bytes())
    content["test"]["id"][3:5] = ["train$_$100", "train$_$101"]
    path.write_bytes(pickle.dumps(content))
    assert splits.shared_groups(splits.load_splits(path)) == ["train"]


def test_samples_without_a_video_are_groups_of_their_own(splits, tmp_path):
    """Running numbers are those of other samples in another split."""
    data = MultimodalDataset(
        {"a": torch.ones(40, 2, 3), "b": torch.ones(40, 2, 3)}, torch.zeros(40)
    )
    write_store(tmp_path / "store", dict.fromkeys(("train", "valid", "test"), data))
    assert not splits.shared_groups(splits.load_splits(tmp_path / "store"))
    dealt = splits.load_splits(tmp_path / "store", split="random:0")
    assert {name: len(part) for name, part in dealt.items()} == {
        "train": 40,
        "valid": 40,
        "test": 40,
    }
    assert sum(map(len, splits.load_splits(None, split="folds:5/0").values())) == 1400


def test_names_of_classes_reach_the_task(splits, monkeypatch, tmp_path):
    names = ["calm", "glad", "sad"]
    data = from_arrays({"a": np.ones((4, 3))}, ["sad", "glad"] * 2, classes=names)
    write_store(tmp_path / "store", dict.fromkeys(("train", "valid", "test"), data))
    options = {"values": [], "l1_weight": 0.0, "label_smoothing": 0.0}
    found = load("task", monkeypatch).describe_task(
        splits.load_splits(tmp_path / "store", split="random:0"), **options
    )
    assert (found["num_classes"], found["classes"]) == (3, names)


def test_samples_of_two_splits_are_joined(splits, npz):
    data = splits.load_splits(npz, label="emotion", group="actor", split="folds:4/0")
    joined = data["train"].join(data["valid"])
    assert joined.ids == data["train"].ids + data["valid"].ids
    assert joined.groups == data["train"].groups + data["valid"].groups
    for sample, label in zip(joined, joined.labels, strict=True):
        assert sample.label == label
    for index, sample in enumerate(joined):
        assert sample.id == joined.ids[index]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"emotion": None}, r"must have the arrays \['emotion'\], got \['face', "),
        ({"actor": None}, r"must have the arrays \['actor'\]"),
        ({"actor": np.zeros(3, int)}, "'actor' must be a name or whole number per sample"),
        ({"actor": np.zeros(80)}, "'actor' must be a name or whole number per sample"),
        ({"face": np.zeros((79, 3))}, "inputs"),
        ({"face": np.array([{"code": 1}] * 80)}, "must be a whole npz of plain arrays"),
        ({"actor": np.zeros(80, int)}, "must have more groups for --split folds:4/0, got 1"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(splits, npz, tmp_path, change, reason):
    content = {name: x for name, x in (arrays(npz) | change).items() if x is not None}
    path = tmp_path / "other.npz"
    np.savez(path, **content)
    with pytest.raises(ValueError, match=reason) as caught:
        splits.load_splits(path, label="emotion", group="actor", split="folds:4/0")
    assert str(path) in str(caught.value)


def test_a_damaged_npz_is_named(splits, npz, tmp_path):
    path = tmp_path / "damaged.npz"
    content = npz.read_bytes()
    with zipfile.ZipFile(npz) as archive:
        place = content.index(archive.read("face.npy")) + 300
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    for damaged in (b"", content[:100], content[:-1], pickle.dumps([1]), flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged.npz must be a whole npz of plain arrays"):
            splits.load_splits(path, label="emotion", group="actor", split="folds:4/0")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(ValueError, match=r"damaged.npz must be a whole npz of plain arrays"):
        splits.load_splits(path, label="emotion", group="actor", split="folds:4/0")
    with pytest.raises(OSError, match=r"none.npz"):
        splits.load_splits(tmp_path / "none.npz")


def test_splits_of_different_widths_are_refused(splits, tmp_path):
    parts = {
        split: MultimodalDataset({"a": torch.ones(3, 2, width)}, torch.zeros(3))
        for split, width in (("train", 2), ("valid", 2), ("test", 3))
    }
    write_store(tmp_path / "store", parts)
    with pytest.raises(ValueError, match="must have the same modalities and kind of labels"):
        splits.load_splits(tmp_path / "store")


@pytest.mark.skipif(not REAL.exists(), reason="needs the recordings of the shared data")
def test_sixteen_actors_are_eight_four_and_four(splits):
    tested = []
    for fold in range(4):
        data = splits.load_splits(REAL, label="emotion", group="actor", split=f"folds:4/{fold}")
        assert [len(part) for part in data.values()] == [480, 240, 240]
        assert [len(found) for found in groups(data).values()] == [8, 4, 4]
        tested += groups(data)["test"]
    assert len(tested) == len(set(tested)) == 16
