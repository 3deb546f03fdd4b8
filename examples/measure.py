"""What a model makes of a split: its figures, those of each branch, and those of the confidence."""

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import concatenate, send_to_device
from splits import Samples
from task import Task, metrics, standing
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tdmer import LossTerms, TDMEROutput, sentiment_metrics
from tdmer.baselines import BaselineTerms
from tdmer.data import Sample, collate


class Outputs(NamedTuple):
    """What a model says of every sample, on the CPU; only TDMER has weights and branches."""

    labels: Tensor
    logits: Tensor
    weights: dict[str, Tensor]
    branch_logits: dict[str, Tensor]
    present: dict[str, Tensor]
    """Whether the sample has the branch: a modality, or for what is common any of them."""


class Measured(NamedTuple):
    """The figures of a split."""

    modalities: list[str]
    """Those that the model was given."""
    metrics: dict[str, float]
    """Of the prediction."""
    weights: dict[str, float]
    """Mean fusion weight of every branch."""
    branches: dict[str, Any]
    """Of TDMER only. ``alone``: the metrics of each branch's own prediction. ``mean``: those of
    the plain mean of the probabilities of the branches that a sample has. ``confidence``, of the
    labelled samples that have the branch: mean ``weight``; mean ``tcp``, the true class
    probability; ``error``, their mean absolute difference; ``corr``, their correlation;
    ``softmax_corr``, that of the TCP with the greatest probability that the branch gives to any
    class, in place of the weight; ``reliability``, the means of weight and TCP in five groups of
    equal size, from the least weight to the greatest."""


def by_name(terms: LossTerms | BaselineTerms) -> dict[str, Tensor]:
    """Return every term of an objective by its name."""
    found = terms._asdict()
    auxiliary = found.pop("auxiliary", {})
    return {**found, **auxiliary}


@torch.no_grad()
def collect(
    model: nn.Module, data: Dataset[Sample], accelerator: Accelerator | None = None
) -> Outputs:
    """Run a model over a split; with an accelerator, every process runs a part of it."""
    model.eval()
    processes = accelerator.num_processes if accelerator else 1
    loader = DataLoader(data, 128 * processes, collate_fn=collate)
    found = []
    for batch in accelerator.prepare(loader) if accelerator else loader:
        output = model(batch.inputs, batch.masks)
        row = Outputs(batch.labels, output.logits, {}, {}, {})
        if isinstance(output, TDMEROutput):
            has = {m: mask.any(dim=1) for m, mask in output.masks.items()}
            anything = torch.stack(list(has.values())).any(dim=0)
            present = {branch: has.get(branch, anything) for branch in output.branch_logits}
            row = Outputs(*row[:2], output.weights, output.branch_logits, present)
        row = accelerator.gather_for_metrics(row) if accelerator else row
        found.append(send_to_device(row, "cpu"))
    joined: Outputs = concatenate(found)
    return joined


def measure(
    model: nn.Module, task: Task, data: Samples, accelerator: Accelerator | None = None
) -> Measured:
    """Return all figures of a split.

    Raises:
        ValueError: A prediction is NaN or infinite.
    """
    outputs = collect(model, data, accelerator)
    logits, labels = outputs.logits, outputs.labels
    if not logits.isfinite().all():
        raise ValueError("a prediction is NaN or infinite: try a smaller --lr")
    branches: dict[str, Any] = {}
    if outputs.branch_logits:
        branches = {
            "alone": {b: metrics(task, x, labels) for b, x in outputs.branch_logits.items()},
            "mean": metrics(task, _mean_logits(outputs), labels),
            "confidence": {b: _confidence(task, outputs, b) for b in outputs.branch_logits},
        }
    weights = {branch: weight.mean().item() for branch, weight in outputs.weights.items()}
    return Measured(list(data.dims), metrics(task, logits, labels), weights, branches)


def choose(
    model: nn.Module, task: Task, data: Samples, accelerator: Accelerator | None = None
) -> Measured:
    """Return the figures with the modalities that are left when no other is better left out."""
    best = measure(model, task, data, accelerator)
    while len(best.modalities) > 1:
        smaller = [[m for m in best.modalities if m != out] for out in best.modalities]
        found = [measure(model, task, data.only(names), accelerator) for names in smaller]
        least = max(found, key=lambda measured: standing(task, measured.metrics))
        if standing(task, least.metrics) <= standing(task, best.metrics):
            break
        best = least
    return best


def _mean_logits(outputs: Outputs) -> Tensor:
    """Return logits whose softmax is the mean over the branches that a sample has."""
    logs = torch.stack([x.log_softmax(dim=1) for x in outputs.branch_logits.values()])
    there = torch.stack([outputs.present[branch] for branch in outputs.branch_logits])
    there = there | ~there.any(dim=0)  # of a sample without anything, all branches
    return logs.masked_fill(~there.unsqueeze(2), -torch.inf).logsumexp(dim=0)


def _confidence(task: Task, outputs: Outputs, branch: str) -> dict[str, Any]:
    counted = task.labelled(outputs.labels) & outputs.present[branch]
    logits = outputs.branch_logits[branch]
    weight = outputs.weights[branch][counted]
    greatest = logits.softmax(dim=1).amax(dim=1)[counted]
    tcp = task.true_class_probability(logits, outputs.labels)[counted]
    # Pearson's r, NaN where one side is constant, is the same between any two columns.
    return {
        "weight": weight.mean().item(),
        "tcp": tcp.mean().item(),
        "error": (weight - tcp).abs().mean().item(),
        "corr": sentiment_metrics(weight, tcp)["corr"],
        "softmax_corr": sentiment_metrics(greatest, tcp)["corr"],
        "reliability": [
            [weight[group].mean().item(), tcp[group].mean().item()]
            for group in weight.argsort().tensor_split(5)
        ],
    }
