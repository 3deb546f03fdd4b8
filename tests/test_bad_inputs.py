"""Bad input by kind, with the message that each gets, as docs/errors.md shows them.

``python -m tests.test_bad_inputs`` writes the page's table anew.
"""

import io
import pickle
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import tdmer
from tdmer import (
    TDMER,
    Classification,
    MultiLabel,
    Predictor,
    Sentiment,
    TDMERLoss,
    baselines,
    losses,
    metrics,
)
from tdmer.data import (
    LengthBucketSampler,
    MultimodalDataset,
    collate,
    from_arrays,
    from_sequences,
    load_misa,
    load_mmsa,
    load_mult,
    load_pickle,
    open_store,
    write_store,
)
from tdmer.features import Extractor, LogMel, TextStates, extract_folder
from tdmer.fusion import TCPFusion, tcp_loss
from tdmer.layers import CrossAttention, InputNormalization
from tdmer.masks import masked_mean
from tdmer.tasks import from_config
from tdmer.trainer import TDMERForTrainer, collate_for_trainer

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


class Bad(NamedTuple):
    group: str
    what: str
    run: Callable[[Path], Any]


def split(**changes: Any) -> dict[str, Any]:
    """A split in MMSA's layout with two samples; a change to None takes the key out."""
    text = np.zeros((2, 4, 3), np.float32)
    text[0, :2] = text[1, :4] = 1.0
    content = {
        "text": text,
        "audio": np.ones((2, 5, 2), np.float32),
        "vision": np.ones((2, 6, 2), np.float32),
        "regression_labels": np.array([0.5, -1.0], np.float32),
        "id": ["a$_$1", "b$_$2"],
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def mmsa(**changes: Any) -> Callable[[Path], Any]:
    """Read an MMSA file whose training split is changed."""
    return pickled(load_mmsa, {"train": split(**changes), "valid": split(), "test": split()})


def pickled(reader: Callable[..., Any], content: Any, **options: Any) -> Callable[[Path], Any]:
    return written(reader, pickle.dumps(content), **options)


def written(reader: Callable[..., Any], content: bytes, **options: Any) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        path = folder / "data.pkl"
        path.write_bytes(content)
        return reader(path, **options)

    return run


def recorded(*rows: str, names: tuple[str, ...] = ("a.wav",)) -> Callable[[Path], Any]:
    """Make a store of a folder with these recordings, all empty, and rows of labels."""

    def run(folder: Path) -> Any:
        (folder / "clips").mkdir()
        for name in names:
            (folder / "clips" / name).touch()
        labels = folder / "labels.csv"
        labels.write_text("\n".join(rows))
        places = folder / "clips", folder / "store", Extractor(audio=LogMel()), labels
        return extract_folder(*places, processes=1, progress=False)

    return run


class Untrained:
    """An encoder of text that was left in training mode."""

    training = True
    tokenize = None


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"")
    return file.getvalue()


def stored(damage: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Open a store after some damage."""

    def run(folder: Path) -> Any:
        write_store(folder / "store", {"train": MultimodalDataset({"text": ONES}, [0.0, 1.0])})
        damage(folder / "store")
        return open_store(folder / "store")

    return run


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip_last(store: Path) -> None:
    path = store / "train.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


class Gadget:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1",)


ONES = np.ones((2, 4, 3), np.float32)
BOTH_ENDS = np.zeros((2, 4, 3), np.float32)
BOTH_ENDS[0, 0] = BOTH_ENDS[1, 3] = 1.0
HOLE = np.zeros((2, 3, 4), np.int64)
HOLE[:, 1] = 1
HOLE[1, 1, 1] = 0
MISA_LABEL = np.array([[0.5]])
MISA_SAMPLE = ((np.arange(3), np.ones((3, 47)), np.ones((3, 74)), ["a"] * 3), MISA_LABEL, "v[0]")
MULT_SPLIT = {
    "text": ONES,
    "audio": ONES,
    "vision": ONES,
    "labels": np.zeros((2, 1, 1)),
    "id": np.array([["a"], ["b"]]),
}
DIMS = {"text": 3, "audio": 2}
X = {"text": torch.ones(2, 4, 3), "audio": torch.ones(2, 5, 2)}


def model(**options: Any) -> TDMER:
    return TDMER(options.pop("dims", DIMS), options.pop("num_classes", 3), **options)


def forward(masks: Any = None, **changes: Any) -> Callable[[Path], Any]:
    return lambda _: model()(X | changes, masks)


def made(call: Callable[[], Any]) -> Callable[[Path], Any]:
    return lambda _: call()


def predicted(inputs: Any, **options: Any) -> Callable[[Path], Any]:
    return lambda _: Predictor(model(), Classification(3), **options)(inputs)


def objective(**options: Any) -> Callable[[Path], Any]:
    return lambda _: TDMERLoss(Sentiment(), **options)


FILES = [
    ("a missing file", lambda folder: load_mmsa(folder / "data.pkl")),
    ("a folder", lambda folder: load_mmsa(folder)),
    ("an empty file", written(load_mmsa, b"")),
    ("a pickle that was cut short", written(load_mmsa, pickle.dumps({"train": split()})[:-40])),
    ("a text file", written(load_mmsa, b"video,start,end,label\na,0,1,0.5\n")),
    ("a NumPy archive (.npz)", written(load_mmsa, zipped("text.npy"))),
    ("a PyTorch file (.pt)", written(load_pickle, zipped("archive/data.pkl"))),
    ("a gzip file", written(load_pickle, b"\x1f\x8b\x08\x00rest of it")),
    ("a web page", written(load_pickle, b"<!DOCTYPE html><html>Sign in</html>")),
    ("a pickle that runs code", pickled(load_mmsa, {"train": Gadget()})),
    ("a pickle of something else", pickled(load_mmsa, [1, 2, 3])),
    ("MISA's layout as MMSA's", pickled(load_mmsa, [MISA_SAMPLE])),
    ("MMSA's layout as MISA's", pickled(load_misa, {"train": split()})),
    ("MMSA's layout as MulT's", pickled(load_mult, {"train": split()})),
    ("an unknown split", pickled(load_mmsa, {"train": split(), "dev": split()})),
    ("no store", lambda folder: open_store(folder / "store")),
    ("a store that is there", lambda folder: write_store(folder, {})),
    ("a store without an index", stored(lambda path: (path / "store.json").unlink())),
    ("a store cut short", stored(lambda path: cut(path / "train.safetensors", 300))),
    ("a store with a damaged step", lambda folder: stored(flip_last)(folder)["train"][1]),
    (
        "a store with a long name of a split",
        lambda folder: write_store(folder / "s", {"a" * 99: []}),
    ),
    (
        "a store of rubbish",
        stored(lambda path: (path / "train.safetensors").write_bytes(b"x" * 99)),
    ),
]
RECORDINGS = [
    ("a missing recording", lambda folder: Extractor(audio=LogMel())(folder / "clip.mp4")),
    ("nothing to make of it", made(lambda: Extractor(fps=2.0))),
    (
        "no transcript",
        lambda folder: Extractor(text=TextStates(lambda words: words))(folder / "clip.mp4"),
    ),
    (
        "a model that is not on this machine",
        made(lambda: Extractor.from_config({"text": {"name": "TextStates", "encoder": "./bert"}})),
    ),
    (
        "a part of another program",
        made(lambda: Extractor.from_config({"audio": {"name": "MyPart"}})),
    ),
    (
        "a part without its options",
        made(lambda: Extractor.from_config({"video": {"name": "Face"}})),
    ),
    ("empty recordings only", recorded("id,label", "a,1")),
    ("labels without a recording", recorded("id,label", "b,1", names=())),
    ("labels without ids", recorded("name,label", "a,1")),
    ("a recording labelled twice", recorded("id,label", "a,1", "a.wav,2")),
    ("a sound beside a video of its name", recorded("id,label", names=("a.wav", "a.mp4"))),
    (
        "no folder of recordings",
        lambda folder: extract_folder(folder / "a", "b", Extractor(audio=LogMel())),
    ),
    (
        "an encoder in training mode",
        made(lambda: TextStates(Untrained())(["so", "glad"])),
    ),
    (
        "another number of vectors than words",
        made(lambda: TextStates(lambda words: ONES[0])(["so", "glad"])),
    ),
]
CONTENT = [
    ("a split that is no dict", pickled(load_mmsa, {"train": [1]})),
    ("no labels", mmsa(regression_labels=None)),
    ("no modality", mmsa(text=None, audio=None, vision=None)),
    ("fewer labels than ids", mmsa(regression_labels=np.zeros(1))),
    ("fewer samples than ids", mmsa(audio=np.ones((1, 5, 2)))),
    ("features without time", mmsa(audio=np.ones((2, 2)))),
    ("features of text", mmsa(audio=np.full((2, 5, 2), "x"))),
    ("another width in another split", mmsa(audio=np.ones((2, 5, 7)))),
    ("labels out of range", mmsa(regression_labels=np.array([0.5, 30.0]))),
    ("labels of text", mmsa(regression_labels=["positive", "negative"])),
    ("an infinite label", mmsa(regression_labels=np.array([0.5, np.inf]))),
    ("a length beyond the array", mmsa(audio_lengths=[5, 9])),
    ("a negative length", mmsa(audio_lengths=[5, -1])),
    ("a fractional length", mmsa(audio_lengths=[5.0, 2.5])),
    ("a length that cuts values off", mmsa(audio_lengths=[5, 2])),
    ("fewer lengths than samples", mmsa(audio_lengths=[5])),
    ("lengths of one split only", mmsa(audio_lengths=[5, 5])),
    ("a mask with a hole", mmsa(text_bert=HOLE)),
    ("tokens of another shape", mmsa(text_bert=np.ones((2, 4)))),
    (
        "a sample without any step",
        mmsa(**dict.fromkeys(("text", "audio", "vision"), ONES * [[[1]], [[0]]])),
    ),
    (
        "an empty split",
        mmsa(id=[], regression_labels=np.zeros(0), text=ONES[:0], audio=ONES[:0], vision=ONES[:0]),
    ),
    ("a name that is no text", mmsa(id=["a", 1.5])),
    ("an unknown key of labels", pickled(load_mmsa, {"train": split()}, labels="emotion")),
    (
        "MISA: steps that differ",
        pickled(
            load_misa,
            [((np.arange(3), np.ones((2, 4)), np.ones((3, 7)), ["a"] * 3), MISA_LABEL, "v")],
        ),
    ),
    ("MISA: a label that is none", pickled(load_misa, [(MISA_SAMPLE[0], "x", "v")])),
    (
        "MulT: labels of another shape",
        pickled(load_mult, {"train": MULT_SPLIT | {"labels": np.zeros((2, 3, 5))}}),
    ),
    ("own arrays: pads on both ends", made(lambda: from_arrays({"text": BOTH_ENDS}, [0.0, 1.0]))),
    (
        "own arrays: a length and a mask",
        made(
            lambda: from_arrays(
                {"text": ONES},
                [0.0, 1.0],
                lengths={"text": [4, 4]},
                masks={"text": np.ones((2, 4))},
            )
        ),
    ),
    (
        "own sequences: other widths",
        made(lambda: from_sequences({"text": [np.ones((2, 3)), np.ones((2, 4))]}, [0.0, 1.0])),
    ),
    (
        "own sequences: one axis",
        made(lambda: from_sequences({"text": [np.ones(3), np.ones(3)]}, [0.0, 1.0])),
    ),
    (
        "a data set of words",
        made(lambda: MultimodalDataset({"text": np.full((2, 4, 3), "a")}, [0.0, 1.0])),
    ),
    ("a data set of no sample", made(lambda: MultimodalDataset({"text": []}, []))),
    (
        "several indices of a data set",
        made(lambda: MultimodalDataset({"text": ONES}, [0.0, 1.0])[[0, 1]]),
    ),
    (
        "a subset of no sample",
        made(lambda: MultimodalDataset({"text": ONES}, [0.0, 1.0]).subset([])),
    ),
]
TENSORS = [
    ("another width", forward(text=torch.ones(2, 4, 5))),
    ("no axis of samples", forward(text=torch.ones(3))),
    ("a vector of another width", forward(text=torch.ones(2, 5))),
    (
        "a nested tensor",
        forward(
            text=torch.nested.nested_tensor(
                [torch.ones(1, 3), torch.ones(2, 3)], layout=torch.jagged
            )
        ),
    ),
    ("whole numbers", forward(text=torch.ones(2, 4, 3, dtype=torch.int64))),
    ("an unknown modality", forward(video=torch.ones(2, 4, 3))),
    ("no modality", made(lambda: model()({}))),
    ("other batch sizes", forward(audio=torch.ones(3, 5, 2))),
    ("a mask of numbers", forward({"text": torch.ones(2, 4)})),
    ("a mask of another length", forward({"text": torch.ones(2, 5, dtype=torch.bool)})),
    ("CMD of other widths", made(lambda: losses.cmd_loss(torch.ones(4, 3), torch.ones(4, 2)))),
    (
        "CMD of whole numbers",
        made(lambda: losses.cmd_loss(torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3))),
    ),
    (
        "similarity of other shapes",
        made(lambda: losses.orthogonal_loss(torch.ones(4, 3), torch.ones(5, 3))),
    ),
    (
        "reconstruction of another shape",
        made(lambda: losses.reconstruction_loss(torch.ones(4, 3), torch.ones(4, 2))),
    ),
    (
        "edges of another shape",
        made(lambda: losses.cross_modal_loss(torch.ones(2, 3, 4), torch.ones(2, 2, 2))),
    ),
    (
        "pooling under a mask of numbers",
        made(lambda: masked_mean(torch.ones(2, 4, 3), torch.ones(2, 4))),
    ),
    (
        "attention without a source",
        made(lambda: CrossAttention(["audio"], 4, 2)(torch.ones(1, 2, 4), {})),
    ),
    (
        "fusion of other branches",
        made(lambda: TCPFusion(["a", "b"], 4)({"a": torch.ones(2, 4)}, {"a": torch.ones(2, 3)})),
    ),
    (
        "branches of another width",
        made(lambda: TCPFusion(["a"], 4)({"a": torch.ones(2, 3)}, {"a": torch.ones(2, 3)})),
    ),
    (
        "logits of other branches",
        made(lambda: TCPFusion(["a"], 4)({"a": torch.ones(2, 4)}, {"b": torch.ones(2, 3)})),
    ),
    (
        "logits of another number of samples",
        made(lambda: TCPFusion(["a"], 4)({"a": torch.ones(2, 4)}, {"a": torch.ones(1, 3)})),
    ),
    (
        "weights of another number of samples",
        made(lambda: tcp_loss(torch.ones(2), torch.ones(2), torch.ones(3))),
    ),
    (
        "normalisation of NaN only",
        made(lambda: InputNormalization(3).fit([(torch.full((1, 2, 3), torch.nan), None)])),
    ),
    ("normalisation from a tensor", made(lambda: model().fit_normalization(torch.ones(1, 2, 3)))),
    (
        "normalisation from samples",
        made(lambda: model().fit_normalization(list(MultimodalDataset({"text": ONES}, [0, 1])))),
    ),
    (
        "a modality that no training sample has",
        made(lambda: model().fit_normalization([({"text": torch.ones(1, 2, 3)}, {})])),
    ),
    ("a batch of no sample", made(lambda: collate([]))),
    ("a batch of others than samples", made(lambda: collate([{"text": torch.ones(2, 3)}]))),
]
PREDICTION = [
    ("an unknown modality", predicted({"text": ONES[0], "video": ONES[0]})),
    ("another width", predicted({"text": np.ones((4, 5))})),
    ("a vector of another width", predicted({"text": np.ones(5)})),
    ("several samples in one array", predicted({"text": ONES})),
    ("nothing finite", predicted({"text": np.full((4, 3), np.nan), "audio": np.ones(2)})),
    ("no modality", predicted([{"text": ONES[0]}, {}])),
    ("modalities that are all missing", predicted({"text": None, "audio": np.ones((0, 2))})),
    ("a string without an extractor", predicted({"text": "such a day"})),
    ("a recording without an extractor", predicted("clip.mp4")),
    ("features beside a recording", predicted({"recording": "clip.mp4", "audio": ONES[0]})),
    (
        "an extractor of another width",
        predicted({"text": "a"}, extractor=Extractor(text=TextStates(lambda words: [[1.0]]))),
    ),
    ("an array for a sample", predicted([ONES[0]])),
    (
        "more names than samples",
        made(
            lambda: Predictor(model(), Classification(3))([{"text": ONES[0]}], ids=["one", "two"])
        ),
    ),
    ("a data set of another width", predicted(MultimodalDataset({"audio": ONES}, [0, 1]))),
    ("a model that was saved without a task", made(lambda: Predictor(model()))),
    ("a task of another model", made(lambda: Predictor(model(), Sentiment()))),
    ("a task of unknown kind", made(lambda: from_config({"name": "eval", "source": "1"}))),
    ("class names for other classes", made(lambda: Classification(3, classes=["glad", "sad"]))),
]
LABELS = [
    ("names without classes", made(lambda: from_arrays({"text": ONES}, ["glad", "sad"]))),
    (
        "a name of no class",
        made(lambda: from_arrays({"text": ONES}, ["glad", "bad"], classes=["glad", "sad"])),
    ),
    (
        "one class by name",
        made(lambda: from_arrays({"text": ONES}, ["glad", "glad"], classes=["glad"])),
    ),
    (
        "a class that is none",
        made(lambda: Classification(3)(torch.ones(2, 3), torch.tensor([0, 3]))),
    ),
    (
        "an infinite score",
        made(lambda: Sentiment()(torch.ones(2, 7), torch.tensor([0.5, torch.inf]))),
    ),
    (
        "multi-label of other than 0 and 1",
        made(lambda: MultiLabel(2)(torch.ones(2, 2), torch.tensor([[0.0, 1.0], [1.0, 2.0]]))),
    ),
    (
        "classes that are no whole numbers",
        made(lambda: Classification(3)(torch.ones(2, 3), torch.ones(2))),
    ),
    (
        "classes of another shape",
        made(lambda: Classification(3)(torch.ones(2, 3), torch.zeros(3, dtype=torch.int64))),
    ),
    ("scores of another shape", made(lambda: Sentiment()(torch.ones(2, 7), torch.zeros(2, 1)))),
    (
        "logits of another number of classes",
        made(lambda: Sentiment()(torch.ones(2, 3), torch.zeros(2))),
    ),
    ("multi-label of another shape", made(lambda: MultiLabel(3)(torch.ones(2, 3), torch.zeros(2)))),
    (
        "metrics of NaN predictions",
        made(lambda: metrics.sentiment_metrics(np.array([np.nan, 1.0]), np.array([0.0, 1.0]))),
    ),
    ("metrics of other lengths", made(lambda: metrics.sentiment_metrics(np.zeros(3), np.zeros(2)))),
    (
        "metrics of classes that are none",
        made(lambda: metrics.classification_metrics(np.array([0.5, 1.0]), np.array([0, 1]))),
    ),
    (
        "metrics of labels other than 0 and 1",
        made(lambda: metrics.multilabel_metrics(np.array([[2, 0]]), np.array([[1, 0]]))),
    ),
    (
        "an unknown metric",
        made(lambda: metrics.bootstrap_interval(np.zeros(3), np.zeros(3), metric="accuracy")),
    ),
]
OPTIONS = [
    ("no modality", made(lambda: model(dims={}))),
    ("a name with a dot", made(lambda: model(dims={"text.en": 3, "audio": 2}))),
    ("a modality named common", made(lambda: model(dims={"common": 3, "audio": 2}))),
    ("a width of 0", made(lambda: model(dims={"text": 0, "audio": 2}))),
    ("one class", made(lambda: model(num_classes=1))),
    ("a width that heads do not divide", made(lambda: model(width=10, heads=4))),
    ("dropout of 1", made(lambda: model(dropout=1.0))),
    ("input dropout for one modality only", made(lambda: model(input_dropout={"text": 0.5}))),
    ("input dropout of 1", made(lambda: model(input_dropout={"text": 0.5, "audio": 1.0}))),
    ("dropout of all temporal features", made(lambda: model(feature_dropout=1.0))),
    ("an unknown activation", made(lambda: model(activation="relu"))),
    ("an unknown fusion", made(lambda: model(fusion="sum"))),
    ("a fractional number of layers", made(lambda: model(layers=1.5))),
    ("a negative weight", objective(alpha=-1.0)),
    ("a weight of NaN", objective(delta=float("nan"))),
    ("a negative weight of cross-modal learning", objective(epsilon=-1.0)),
    ("an unknown term", objective(without=["cmd"])),
    ("a term that is no list", objective(without="con")),
    ("no moments", objective(n_moments=0)),
    ("class values that do not increase", made(lambda: Sentiment([1.0, 0.0]))),
    ("label smoothing of 1", made(lambda: Classification(3, label_smoothing=1.0))),
    (
        "modality dropout of 1",
        made(
            lambda: collate([MultimodalDataset({"a": ONES}, [0.0, 1.0])[0]], modality_dropout=1.0)
        ),
    ),
    ("columns for the Trainer", made(lambda: collate_for_trainer([{"text": ONES, "label": 0.5}]))),
    (
        "another way of checkpointing",
        made(
            lambda: TDMERForTrainer(
                model(), TDMERLoss(Sentiment())
            ).activation_checkpointing_enable({"use_reentrant": True})
        ),
    ),
    ("a batch size of 0", made(lambda: LengthBucketSampler([1, 2], 0))),
    (
        "a rank that does not exist",
        made(lambda: LengthBucketSampler([1, 2], 1, num_replicas=2, rank=2)),
    ),
    ("unknown pads", made(lambda: from_arrays({"text": ONES}, [0.0, 1.0], pads="end"))),
    ("an unknown text", pickled(load_mmsa, {"train": split()}, text="words")),
    ("MulT of one modality", made(lambda: baselines.MulT({"text": 3}, 3))),
    ("ICCN without its anchor", made(lambda: baselines.ICCN({"face": 3, "voice": 2}, 3))),
    ("TFN too wide", made(lambda: baselines.TFN(DIMS, 3, width=1000))),
    ("an LSTM for no modality", made(lambda: baselines.TFN(DIMS, 3, read=["face"]))),
    (
        "a weight of no loss",
        made(
            lambda: baselines.BaselineLoss(Sentiment(), weights={"contrast": 1.0})(
                baselines.Plain(torch.ones(2, 7), torch.ones(2, 4)), torch.ones(2)
            )
        ),
    ),
    (
        "a label range the wrong way round",
        pickled(load_mmsa, {"train": split()}, label_range=(3.0, -3.0)),
    ),
]
GROUPS = {
    "Files": FILES,
    "Recordings": RECORDINGS,
    "Contents": CONTENT,
    "Tensors": TENSORS,
    "Prediction": PREDICTION,
    "Labels": LABELS,
    "Options": OPTIONS,
}
CASES = [Bad(group, *case) for group, cases in GROUPS.items() for case in cases]


def answer(case: Bad, folder: Path) -> tuple[BaseException, str]:
    """Return what is raised, and its message without the folder."""
    try:
        case.run(folder)
    except Exception as error:
        return error, str(error).replace(f"{folder}/", "").replace(str(folder), "folder")
    raise AssertionError(f"{case.what} passes silently")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_is_answered_by_the_package(case: Bad, tmp_path: Path) -> None:
    error, _ = answer(case, tmp_path)
    assert isinstance(error, (ValueError, TypeError, OSError))
    # Raised on purpose: the innermost line is one of the package that says "raise".
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not isinstance(error, OSError):
        assert Path(last.filename).is_relative_to(Path(tdmer.__file__).parent)
        assert last.line is not None
        assert "raise" in last.line


def table(folder: Path) -> str:
    """Return the rows of the page."""
    lines = []
    for group, cases in GROUPS.items():
        lines += [f"## {group}", "", "| given | answer |", "|---|---|"]
        for number, case in enumerate(cases):
            place = folder / f"{group}{number}"
            place.mkdir()
            error, message = answer(Bad(group, *case), place)
            cell = message.replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {case[0]} | `{type(error).__name__}: {cell}` |")
        lines.append("")
    return "\n".join(lines)


@pytest.mark.usefixtures("unchecked")
def test_page_shows_these_messages(tmp_path: Path) -> None:
    page = PAGE.read_text()
    assert page[page.index(BEGIN) + len(BEGIN) : page.index(END)] == table(tmp_path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = table(Path(folder))
    page = PAGE.read_text()
    PAGE.write_text(page[: page.index(BEGIN) + len(BEGIN)] + found + page[page.index(END) :])
