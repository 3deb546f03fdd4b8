"""The geometry of a face and its emotions, by models in files of LiteRT (extra ``video``)."""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_real
from tdmer.features._extras import package

_EMOTIONS = ("angry", "disgusted", "afraid", "happy", "sad", "surprised", "neutral")
# Number of boxes of a detector → its grids, and how many boxes each of their cells has.
_GRIDS = {896: ((16, 2), (8, 6)), 2304: ((48, 1),)}
# Outer corners of the eyes, the right one of the person first, who looks at us.
_EYES = (33, 263)


@dataclass(frozen=True)
class Face:
    """Mesh and emotions of one face per picture, that which is detected most surely.

    Three models, each a ``.tflite`` file: MediaPipe's face detector (BlazeFace, short, full or back
    range), its face mesh, and a classifier of seven emotions that takes a grey square in [-1, 1]
    and gives angry, disgusted, afraid, happy, sad, surprised, neutral, such as that of the package
    ``fer``. The mesh is turned upright, centred on its mean and measured in distances between the
    outer corners of the eyes, so that it tells the expression; where the face stands and how it is
    turned has columns of its own.

    Args:
        detector: file of the detector.
        mesh: file of the mesh of 468 landmarks; its score decides whether there is a face.
        emotions: file of the classifier; None: no columns of emotions.
        threshold: the least score, of the detector and of the mesh.

    Raises:
        ImportError: ai-edge-litert is not installed (when it is called).
        ValueError: a file that is no model of the kind (when it is called).

    Example:
        >>> face = Face("face_detection_short_range.tflite", "face_landmark.tflite")
        >>> len(face.columns), face.columns[:2], face.columns[99]
        (1408, ['centre x [share of width]', 'centre y [share of height]'], 'landmark 31 z [eyes]')
    """

    detector: str | os.PathLike[str]
    mesh: str | os.PathLike[str]
    emotions: str | os.PathLike[str] | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, below=1.0)

    @property
    def columns(self) -> list[str]:
        """The name and unit of each column; ``[eyes]`` are distances of the eyes, y downwards."""
        place = ["centre x [share of width]", "centre y [share of height]"]
        place += ["distance of the eyes [share of width]", "roll [radians, clockwise]"]
        mesh = [f"landmark {number} {axis} [eyes]" for number in range(468) for axis in "xyz"]
        emotions = [f"probability of {emotion}" for emotion in _EMOTIONS]
        return place + mesh + (emotions if self.emotions is not None else [])

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return the features ``(f,)`` of an RGB picture, None where there is no face."""
        height, width = picture.shape[:2]
        found = self._detect(picture)
        if found is None:
            return None
        x, y, size, roll = found
        square = _square(picture, x, y, size, roll, _side(self.mesh))
        points, score = _run(self.mesh, square / 255, 1404, 1)
        if _sigmoid(score[0]) < self.threshold:
            return None
        # From the pixels of the square into those of the picture, still upright.
        mesh = points.reshape(468, 3) * (size / len(square)) - [size / 2, size / 2, 0.0]
        across = mesh[_EYES[1], :2] - mesh[_EYES[0], :2]
        eyes = max(float(np.hypot(*across)), 1e-6)
        turn = float(np.arctan2(across[1], across[0]))
        middle = mesh[:, :2].mean(axis=0)
        x, y = np.array([x, y]) + _turned(middle, roll)
        mesh[:, :2] = _turned(mesh[:, :2] - middle, -turn)
        mesh[:, 2] -= mesh[:, 2].mean()
        place = np.array([x / width, y / height, eyes / width, roll + turn])
        parts: list[NDArray[Any]] = [place, mesh.ravel() / eyes]
        if self.emotions is not None:
            extent = float(np.ptp(mesh[:, :2], axis=0).max())
            face = _square(picture, x, y, extent, roll + turn, _side(self.emotions))
            grey = face @ np.array([[0.299], [0.587], [0.114]])
            parts += _run(self.emotions, grey / 127.5 - 1, len(_EMOTIONS))
        return np.concatenate(parts).astype(np.float32)

    def _detect(self, picture: NDArray[np.uint8]) -> tuple[float, float, float, float] | None:
        """Return centre, side and roll of a square around the face, in pixels and radians."""
        height, width = picture.shape[:2]
        whole, side = max(height, width), _side(self.detector)
        square = _square(picture, width / 2, height / 2, whole, 0.0, side)
        boxes, scores = _run(self.detector, square / 127.5 - 1, None, None)
        if len(scores) not in _GRIDS or len(boxes) != 16 * len(scores):
            rule = f"a face detector of {' or '.join(map(str, _GRIDS))} boxes"
            raise ValueError(f"{os.fspath(self.detector)} must be {rule}, got {len(scores)}")
        best = int(scores.argmax())
        if _sigmoid(scores[best]) < self.threshold:
            return None
        # Pairs: centre, width and height, right eye, left eye, and four more; from the anchor.
        pairs = boxes.reshape(-1, 8, 2)[best] / side
        pairs[[0, 2, 3]] += _anchors(len(scores))[best]
        pairs *= whole
        x, y = pairs[0] - (whole - np.array([width, height])) / 2
        across = pairs[3] - pairs[2]
        # The mesh was trained on one and a half times the detector's box.
        return x, y, 1.5 * float(pairs[1].max()), float(np.arctan2(across[1], across[0]))


def _square(
    picture: NDArray[np.uint8], x: float, y: float, size: float, roll: float, side: int
) -> NDArray[np.float64]:
    """Cut a turned square out of a picture, ``(side, side, channels)``; outside it is black."""
    shrink = int(size // side)
    if shrink > 1:  # Else pixels between the sampled ones would be passed over.
        height, width = (length // shrink * shrink for length in picture.shape[:2])
        blocks = picture[:height, :width].reshape(height // shrink, shrink, -1, shrink, 3)
        picture = blocks.mean(axis=(1, 3))
        x, y, size = x / shrink, y / shrink, size / shrink
    ticks = ((np.arange(side) + 0.5) / side - 0.5) * size
    grid = _turned(np.stack(np.meshgrid(ticks, ticks), axis=-1), roll) + np.array([x, y])
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))
    # Of the four pixels around each place, the first, in the padded picture.
    last = np.array(padded.shape[1::-1]) - 1
    place = np.clip(grid + 0.5, 0, last)
    first = np.minimum(place.astype(int), last - 1)
    (u, v), (right, down) = np.moveaxis(first, -1, 0), np.moveaxis(place - first, -1, 0)[..., None]
    upper = padded[v, u] * (1 - right) + padded[v, u + 1] * right
    lower = padded[v + 1, u] * (1 - right) + padded[v + 1, u + 1] * right
    square: NDArray[np.float64] = upper * (1 - down) + lower * down
    return square


def _turned(points: NDArray[Any], angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    turned: NDArray[np.float64] = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _sigmoid(x: Any) -> float:
    return float(1 / (1 + np.exp(-np.clip(x, -80, 80))))


@cache
def _anchors(boxes: int) -> NDArray[np.float64]:
    """Return the centres of the cells that boxes are measured from, as shares of the square."""
    centres = []
    for cells, each in _GRIDS[boxes]:
        ticks = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
        centres.append(grid.repeat(each, axis=0))
    return np.concatenate(centres)


@cache
def _model(path: str) -> Any:
    litert = package("ai_edge_litert.interpreter", "video")
    try:
        model = litert.Interpreter(path, num_threads=1)
        model.allocate_tensors()
    except ValueError as error:
        raise ValueError(f"{path} must be a model of LiteRT (.tflite), got: {error}") from error
    return model


def _side(path: str | os.PathLike[str]) -> int:
    return int(_model(os.fspath(path)).get_input_details()[0]["shape"][1])


def _run(
    path: str | os.PathLike[str], square: NDArray[np.float64], *sizes: int | None
) -> list[NDArray[np.float32]]:
    """Return the outputs of a model, flat; raise unless they have these sizes."""
    model = _model(os.fspath(path))
    model.set_tensor(model.get_input_details()[0]["index"], square[None].astype(np.float32))
    model.invoke()
    found = [model.get_tensor(o["index"]).ravel() for o in model.get_output_details()]
    if len(found) < len(sizes) or any(
        size not in (None, len(x)) for size, x in zip(sizes, found, strict=False)
    ):
        got = [len(x) for x in found]
        raise ValueError(f"{os.fspath(path)} must give {list(sizes)} numbers, got {got}")
    return found[: len(sizes)]
