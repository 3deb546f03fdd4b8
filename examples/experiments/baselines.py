"""Baselines of scikit-learn on the same data and splits: what a model must beat.

Each sample is one vector, the means over the real steps of its modalities side by side. What is
missing or no number counts as the mean of the training samples, by which features are standardised.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from options import take_arguments
from run_folder import RunFolder
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, SVR
from splits import Samples, fingerprint, load_splits
from task import Task, check_labels, check_training, describe_task

from tdmer import Classification, sentiment_metrics
from tdmer.metrics import classification_metrics
from tdmer.tasks import from_config

MLP = {"hidden_layer_sizes": (64,), "early_stopping": True, "max_iter": 1000}
CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "logistic regression": lambda seed: LogisticRegression(C=0.02, max_iter=5000),
    "svm": lambda seed: SVC(),
    "mlp": lambda seed: MLPClassifier(**MLP, random_state=seed),
}
REGRESSORS: dict[str, Callable[[int], Any]] = {
    "ridge": lambda seed: RidgeCV(alphas=np.logspace(0, 4, 9)),
    "svm": lambda seed: SVR(),
    "mlp": lambda seed: MLPRegressor(**MLP, random_state=seed),
}


def fit(name: str, args: argparse.Namespace) -> None:
    """Fit the baseline that a name begins with, and write a run folder as train.py does.

    Args:
        name: Of the variant, such as ``"ridge, text only"``.
        args: Options of train.py: those of the data, ``out``, ``seed`` and ``refit`` count.

    Raises:
        OSError: There is no such file.
        TypeError: Labels are of another kind.
        ValueError: There is no such baseline for such labels, or as train.py.
    """
    samples = take_arguments(dict(vars(args)), load_splits)
    data = load_splits(args.data, **samples)
    described = describe_task(data, **take_arguments(dict(vars(args)), describe_task))
    task = from_config(described)
    check_labels(args.data, data, task)
    check_training(data, task)
    kinds = CLASSIFIERS if isinstance(task, Classification) else REGRESSORS
    kind = next((kind for kind in kinds if name.lower().startswith(kind)), None)
    if kind is None:
        raise ValueError(f"a variant of sklearn must begin with one of {list(kinds)}, got {name!r}")
    config = {
        "data": fingerprint(args.data),
        "samples": samples,
        "task": described,
        "training": {"baseline": kind, "seed": args.seed, "refit": args.refit is not None},
        "versions": {package.__name__: package.__version__ for package in (np, sklearn)},
    }
    run = RunFolder(args.out, config, resume=True, overwrite=False)
    if run.finished:
        return
    train = data["train"].join(data["valid"]) if args.refit else data["train"]
    fill = FunctionTransformer(np.nan_to_num)
    model = make_pipeline(StandardScaler(), fill, kinds[kind](args.seed))
    known = task.labelled(train.labels).numpy()
    model.fit(pooled(train)[known], train.labels.numpy()[known])
    read = ["test"] if args.refit else ["valid", "test"]
    run.finish({split: metrics(model, task, data[split]) for split in read})


def pooled(data: Samples) -> NDArray[np.float64]:
    """Return the mean of every feature over the steps where it is a number, ``(n, f)``."""
    rows = []
    for number in range(len(data)):
        inputs = data[number].inputs.values()
        known = [x.double().where(x.isfinite(), np.nan).nanmean(dim=0).numpy() for x in inputs]
        rows.append(np.concatenate(known))
    return np.stack(rows)


def metrics(model: Any, task: Task, data: Samples) -> dict[str, float]:
    """Return the metrics of a split; ``loss``, the cross-entropy, where there are probabilities."""
    x, labels = pooled(data), data.labels.numpy()
    if not isinstance(task, Classification):
        return {"loss": np.nan, **sentiment_metrics(model.predict(x), labels)}
    loss = np.nan
    if hasattr(model, "predict_proba"):
        known = task.labelled(data.labels).numpy()
        given = (
            model.predict_proba(x)[known, None] * (labels[known, None] == model.classes_)[:, None]
        )
        loss = float(-np.log(given.sum(axis=(1, 2)).clip(np.finfo(float).tiny)).mean())
    return {"loss": loss, **classification_metrics(model.predict(x), labels)}
