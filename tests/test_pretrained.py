"""Models saved to a folder and loaded from it, or from the Hub."""

import inspect
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tdmer import TDMER, Classification, Sentiment
from tdmer.tasks import from_config

DIMS = {"text": 6, "audio": 4, "video": 3}
VARIANTS = [
    {},
    {
        "dims": {"video": 3, "text": 6, "audio": 4},
        "kernel_size": {"audio": 1, "video": 3, "text": 5},
    },
    {"activation": "sigmoid", "fusion": "mean", "positions": False},
    {"layers": 0, "input_dropout": {"video": 0.0, "text": 0.1, "audio": 0.2}},
    {"dims": {"text": 6}, "layers": 2, "heads": 1, "width": 4},
]


def make_model(**options):
    torch.manual_seed(0)
    return TDMER(**{"dims": DIMS, "num_classes": 3, "width": 8, "heads": 2} | options).eval()


def sequences(model):
    gen = torch.Generator().manual_seed(1)
    return {m: torch.randn(3, 5, width, generator=gen) for m, width in sorted(model.dims.items())}


@pytest.fixture
def saved(tmp_path):
    make_model().save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["options"].update(changes)
    path.write_text(json.dumps(config))


def test_every_option_is_kept():
    names = inspect.signature(TDMER).parameters
    assert set(make_model().options) == set(names)
    # What a variant below changes, so that none is saved as its default.
    changed = set().union(*VARIANTS) | {"num_classes"}
    assert set(names) - changed == {"dropout", "feature_dropout"}
    options = make_model(dropout=0.125, feature_dropout=0.25).options
    assert (options["dropout"], options["feature_dropout"]) == (0.125, 0.25)


def test_a_model_shows_its_options():
    shown = repr(make_model(fusion="mean"))
    for option in ("dims={'text': 6, 'audio': 4, 'video': 3}", "width=8", "fusion='mean'"):
        assert option in shown


@pytest.mark.parametrize("options", VARIANTS)
def test_round_trip_is_exact(options, tmp_path):
    model = make_model(**options)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.01 * torch.randn_like(x))
    model.normalizations["text"].mean.fill_(0.5)
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    restored = TDMER.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not restored.training
    assert restored.options == model.options
    assert restored.modalities == model.modalities
    found, wanted = restored(sequences(model)), model(sequences(model))
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.present, wanted.present)
    assert list(found.weights) == list(wanted.weights)
    found.logits.sum().backward()
    assert restored.classifier[0].weight.grad is not None


def test_round_trip_in_a_fresh_process(tmp_path):
    model = make_model(**VARIANTS[1])
    model.save_pretrained(tmp_path)
    save_file(sequences(model), tmp_path / "inputs.safetensors")
    program = """
        import sys, torch; from pathlib import Path; from tdmer import TDMER
        from safetensors.torch import load_file, save_file
        torch.set_num_threads(1)  # as here: more sum in another order
        folder = Path(sys.argv[1])
        logits = TDMER.from_pretrained(folder)(load_file(folder / "inputs.safetensors")).logits
        save_file({"logits": logits.detach()}, folder / "logits.safetensors")
        assert "huggingface_hub" not in sys.modules
    """
    lines = "\n".join(line.strip() for line in program.splitlines())
    subprocess.run([sys.executable, "-c", lines, str(tmp_path)], check=True)
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    assert torch.equal(found, model(sequences(model)).logits)


def test_sorted_keys_change_nothing(tmp_path):
    model = make_model(**VARIANTS[1])
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    restored = TDMER.from_pretrained(tmp_path)
    assert restored.modalities == ("video", "text", "audio")
    assert torch.equal(restored(sequences(model)).logits, model(sequences(model)).logits)


def test_the_task_is_kept(tmp_path):
    task = Classification(3, classes=["glad", "sad", "calm"])
    make_model().save_pretrained(tmp_path, task=task)
    assert "| classes | ['glad', 'sad', 'calm'] |" in (tmp_path / "README.md").read_text()
    model = TDMER.from_pretrained(tmp_path)
    assert from_config(model.task_config).config == task.config
    model.save_pretrained(tmp_path / "again")
    assert TDMER.from_pretrained(tmp_path / "again").task_config == task.config


def test_files_without_a_task_are_read(saved):
    assert TDMER.from_pretrained(saved).task_config is None
    path = saved / "config.json"
    config = json.loads(path.read_text())
    del config["task"]  # as before it was kept
    path.write_text(json.dumps(config))
    assert TDMER.from_pretrained(saved).task_config is None
    path.write_text(json.dumps(config | {"task": "eval"}))
    with pytest.raises(ValueError, match="a task that is a str"):
        TDMER.from_pretrained(saved)


def test_a_task_that_cannot_be_kept_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="or have a config as they, got Linear"):
        make_model().save_pretrained(tmp_path, task=torch.nn.Linear(2, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_saved(tmp_path):
    make_model(width=np.int64(8), dropout=np.float64(0.5)).save_pretrained(tmp_path)
    assert TDMER.from_pretrained(tmp_path).options["width"] == 8


def test_half_precision_stays(tmp_path):
    make_model().half().save_pretrained(tmp_path)
    assert TDMER.from_pretrained(tmp_path).classifier[0].weight.dtype == torch.float16


def test_a_loaded_model_saves_over_its_own_files(saved):
    model = TDMER.from_pretrained(saved)
    wanted = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        model.classifier[0].weight.add_(1.0)
    model.save_pretrained(saved)
    found = load_file(saved / "model.safetensors")
    assert torch.equal(found.pop("classifier.0.weight"), wanted.pop("classifier.0.weight") + 1.0)
    assert all(torch.equal(found[name], x) for name, x in wanted.items())


def test_what_cannot_be_written_leaves_the_old_files(saved, monkeypatch):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        make_model(layers=2).save_pretrained(saved, limits="None.")
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


HUGE = 10**12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 10**9}, "more than .* tensors"),
        ({"width": HUGE, "heads": 1}, "options beside"),
        ({"dims": DIMS | {"text": HUGE}}, "must fit its options"),
        ({"num_classes": HUGE}, "must fit its options"),
        ({"kernel_size": HUGE}, "must fit its options"),
        ({"layers": True}, "layers must be an int, got bool"),
        ({"width": "8"}, "width must be an int, got str"),
        ({"dropout": float("nan")}, "dropout must be in"),
        ({"dims": None}, "must be"),
        ({"shape": 3}, "unexpected keyword argument 'shape'"),
        ({"dims": {"text": 6}}, r"dims of \['text'\] for modalities"),
        ({"layers": 2}, r"must have shape \(8,\), got None"),
        ({"layers": 0}, r"must have shape None, got \("),
        ({"fusion": "mean"}, "must have shape None"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_hostile_options_are_refused_at_once(saved, changes, message):
    edit_config(saved, **changes)
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        TDMER.from_pretrained(saved)
    assert time.perf_counter() - begin < 5.0


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 10**9},
        {"dims": {f"m{number}": 2 for number in range(400)}},
        {"dims": {f"m{number}": 2 for number in range(40)}, "layers": 10**4},
    ],
)
def test_a_model_larger_than_its_weights_is_not_built(saved, monkeypatch, changes):
    edit_config(saved, **changes)
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"modalities": list(config["options"]["dims"])}))
    built = []

    class Counted(torch.nn.Linear):
        def __init__(self, *args, **options):
            built.append(args)
            super().__init__(*args, **options)

    monkeypatch.setattr(torch.nn, "Linear", Counted)
    with pytest.raises(ValueError, match=r"more than \d+ tensors"):
        TDMER.from_pretrained(saved)
    assert len(built) < 1000
    torch.nn.Linear(2, 2)  # nothing counts any more


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "null", "{}", "[" * 100_000, '{"model": "Other"}', '{"model": "TDMER"}', "\xff"],
)
def test_other_configurations_are_refused(saved, content):
    (saved / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match="must be one that save_pretrained of a TDMER wrote"):
        TDMER.from_pretrained(saved)


def test_options_left_out_are_refused(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    del config["options"]["positions"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"options without \['positions'\]"):
        TDMER.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("classifier.0.bias"), r"classifier\.0\.bias must have shape"),
        (lambda x: x.update(extra=torch.zeros(1)), "extra must have shape None"),
        (lambda x: x["classifier.0.bias"].fill_(torch.nan), "must hold finite weights"),
        (
            lambda x: x.update({"classifier.0.bias": torch.zeros(8, dtype=torch.int64)}),
            "must hold torch.float32",
        ),
        (
            lambda x: x.update({"classifier.0.bias": x["classifier.0.bias"].double()}),
            r"weights of one dtype, got \['torch.float32', 'torch.float64'\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, change, message):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        TDMER.from_pretrained(saved)


class Gadget:
    def __reduce__(self):
        return print, ("this would run",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(pickle.dumps(Gadget())),
        lambda path: torch.save({"weight": torch.ones(2)}, path),
    ],
)
def test_files_of_another_kind_are_refused(saved, damage):
    damage(saved / "model.safetensors")
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        TDMER.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no {name}"):
        TDMER.from_pretrained(saved)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="name must be a folder or 'user/name' on the Hub"):
        TDMER.from_pretrained(tmp_path / "nowhere")


def test_the_card_says_what_it_was_told(tmp_path):
    model = make_model()
    model.save_pretrained(
        tmp_path, data="Ten clips.", metrics={"mae": 0.87654, "n": 10}, limits="Not for people."
    )
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: tdmer\n")
    for line in ("Ten clips.", "| mae | 0.8765 |", "| n | 10 |", "Not for people.", "| text | 6 |"):
        assert f"\n{line}\n" in card
    (tmp_path / "README.md").write_text("Written by hand.")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "Written by hand."
    model.save_pretrained(tmp_path, limits="None known.")
    assert "None known." in (tmp_path / "README.md").read_text()


class Hub:
    """The two calls of the Hub's client that upload, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[dict[str, object]] = []

    def __call__(self, token=None):
        self.calls.append({"token": token})
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append({"private": private, "exist_ok": exist_ok})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        self.calls.append({"repo_id": repo_id, "revision": revision, "message": commit_message})
        for file in Path(folder_path).iterdir():
            (self.folder / file.name).write_bytes(file.read_bytes())
        return type("Commit", (), {"commit_url": f"https://huggingface.co/{repo_id}/commit/1"})


def test_the_hub_gets_the_same_files(tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = make_model()
    address = model.push_to_hub(
        "user/model", private=True, token="secret", limits="Few data.", task=Sentiment((0, 1, 2))
    )
    assert address == "https://huggingface.co/user/model/commit/1"
    assert hub.calls == [
        {"token": "secret"},
        {"private": True, "exist_ok": True},
        {"repo_id": "user/model", "revision": None, "message": "Upload model"},
    ]
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert "Few data." in (tmp_path / "README.md").read_text()
    restored = TDMER.from_pretrained("user/model", revision="main", local_files_only=True)
    assert restored.task_config["name"] == "Sentiment"
    assert asked["repo_id"] == "user/model"
    assert (asked["revision"], asked["local_files_only"]) == ("main", True)
    assert set(asked["allow_patterns"]) == {"config.json", "model.safetensors"}
    assert torch.equal(restored(sequences(model)).logits, model(sequences(model)).logits)
