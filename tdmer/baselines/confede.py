"""Contrastive decomposition: what is similar between modalities and samples, and what is not."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_count, check_positive
from tdmer.baselines.objective import Auxiliary, supervised_loss
from tdmer.baselines.utterance import temporal_nets
from tdmer.inputs import Inputs
from tdmer.masks import masked_mean, zero_pads
from tdmer.objective import Task
from tdmer.pretrained import Pretrained


class ConFEDEOutput(NamedTuple):
    """What :class:`ConFEDE` returns; ``m`` counts the modalities in the order of their names."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    similar: Tensor
    """What a modality has in common with others and with like samples, ``(b, m, d)``."""
    dissimilar: Tensor
    """What it has of its own, ``(b, m, d)``."""
    branch_logits: Tensor
    """Logits of each modality alone, ``(b, m, k)``."""
    present: Tensor
    """True where a sample has the modality, ``(b, m)``."""
    temperature: float
    """What cosines are divided by."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """Return ``contrast`` and ``branches``, by which every modality predicts alone."""
        alone = [
            supervised_loss(task, logits, labels, here)
            for logits, here in zip(
                self.branch_logits.unbind(1), self.present.unbind(1), strict=True
            )
        ]
        alike, unlike = like_labels(task, labels)
        value = contrastive_loss(
            self.similar, self.dissimilar, self.present, alike, unlike, self.temperature
        )
        return {
            "contrast": Auxiliary(0.1, value),
            "branches": Auxiliary(0.01, torch.stack(alone).sum()),
        }


def like_labels(task: Task, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pairs of different samples have like labels, and which have unlike ones.

    Labels are alike where their distance is less than half the mean distance of the batch: of
    classes, where they are the same.

    Args:
        task: It knows which samples have a label; the others are in no pair.
        labels: As the task takes them.

    Returns:
        Two masks of shape ``(b, b)``.

    Example:
        >>> import torch
        >>> from tdmer import Sentiment
        >>> alike, unlike = like_labels(Sentiment(), torch.tensor([2.0, 2.5, -1.0, float("nan")]))
        >>> alike.nonzero().tolist()
        [[0, 1], [1, 0]]
        >>> unlike.nonzero().tolist()
        [[0, 2], [1, 2], [2, 0], [2, 1]]
    """
    known = task.labelled(labels)
    pairs = known.unsqueeze(0) & known.unsqueeze(1)
    pairs = pairs & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    x = labels.reshape(len(labels), -1)
    gaps = x.unsqueeze(0) - x.unsqueeze(1)
    # The numbers of classes have no distance, and single labels may be missing.
    far = gaps.abs().nan_to_num(0.0) if x.is_floating_point() else (gaps != 0).float()
    distance = far.mean(dim=2).masked_fill(~pairs, 0.0)
    like = distance < distance.sum() / pairs.sum().clamp(min=1) / 2
    return pairs & like, pairs & ~like


def contrastive_loss(
    similar: Float[Tensor, "b m d"],
    dissimilar: Float[Tensor, "b m d"],
    present: Bool[Tensor, "b m"],
    alike: Bool[Tensor, "b b"],
    unlike: Bool[Tensor, "b b"],
    temperature: float = 0.5,
) -> Float[Tensor, ""]:
    """Mean over pairs that are to be alike of how much nearer they are than those that are not.

    Near to a similarity feature are to be those of the other modalities of the sample, and those of
    the same modality of samples with like labels; far from it all dissimilarity features of the
    sample, and similarity features of the same modality of samples with unlike labels.

    Args:
        similar: Similarity features.
        dissimilar: Dissimilarity features.
        present: True where a sample has the modality.
        alike: Pairs of samples with like labels.
        unlike: Pairs of samples with unlike labels.
        temperature: What cosines are divided by.

    Returns:
        A scalar of at least 0; 0 without any pair.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> nothing = torch.zeros(1, 1, dtype=torch.bool)
        >>> here = torch.ones(1, 2, dtype=torch.bool)
        >>> far = contrastive_loss(x, x.flip(2), here, nothing, nothing)
        >>> far < contrastive_loss(x, x, here, nothing, nothing)
        tensor(True)
    """
    b, m, d = similar.shape
    both = F.normalize(torch.cat([similar.reshape(b * m, d), dissimilar.reshape(b * m, d)]), dim=1)
    scores = both[: b * m] @ both.transpose(0, 1) / temperature
    same_sample = torch.eye(b, dtype=torch.bool, device=similar.device)
    same_modality = torch.eye(m, dtype=torch.bool, device=similar.device)
    here = present.reshape(b * m)
    real = here.unsqueeze(1) & here

    def pairs(samples: Tensor, modalities: Tensor) -> Tensor:
        """Return which features are of such samples and such modalities."""
        return (samples[:, None, :, None] & modalities[None, :, None, :]).reshape(b * m, b * m)

    near = pairs(same_sample, ~same_modality) | pairs(alike, same_modality)
    of_sample = pairs(same_sample, torch.ones_like(same_modality))
    far = torch.cat([pairs(unlike, same_modality) & real, of_sample & real], dim=1)
    # Finite, for a feature that nothing is far from.
    against = scores.masked_fill(~far, -1e4).logsumexp(dim=1, keepdim=True)
    near = near & real
    errors = F.softplus(against - scores[:, : b * m]).masked_fill(~near, 0.0)
    return errors.sum() / near.sum().clamp(min=1)


class ConFEDE(Pretrained):
    """Contrastive feature decomposition: a similarity and a dissimilarity feature per modality.

    Each modality becomes a vector, and two projections of it are pulled to and pushed from one
    another (:func:`contrastive_loss`); all together predict, and each vector predicts alone.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width ``d`` of all features.
        kernel_size: Steps under the first convolution.
        temperature: What cosines are divided by.
        dropout: Dropout of the head, in [0, 1).
        input_dropout: Dropout of input features, in [0, 1).
        feature_dropout: Dropout of temporal features; both drop a feature from all steps.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Source:
        Yang et al., "ConFEDE: Contrastive feature decomposition for multimodal sentiment analysis",
        ACL 2023.

    Example:
        >>> import torch
        >>> model = ConFEDE({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> output = model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)})
        >>> output.similar.shape
        torch.Size([2, 3, 64])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    temporal: nn.ModuleDict
    dissimilar: nn.ModuleDict
    similar: nn.ModuleDict
    branch_heads: nn.ModuleDict
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 64,
        kernel_size: int = 5,
        temperature: float = 0.5,
        dropout: float = 0.5,
        input_dropout: float = 0.3,
        feature_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_positive("temperature", temperature)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "kernel_size": kernel_size,
            "temperature": temperature,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "feature_dropout": feature_dropout,
        }
        self.modalities = tuple(dims)
        self.temperature = temperature
        names = sorted(dims)
        self.normalizations = Inputs(dims)
        self.temporal = temporal_nets(
            dims,
            width,
            kernel_size=kernel_size,
            input_dropout=input_dropout,
            feature_dropout=feature_dropout,
        )
        self.similar, self.dissimilar = (
            nn.ModuleDict({m: nn.Sequential(nn.Linear(width, width), nn.Tanh()) for m in names})
            for _ in range(2)
        )
        self.branch_heads = nn.ModuleDict({m: nn.Linear(width, num_classes) for m in names})
        self.head = nn.Sequential(
            *(nn.Linear(2 * len(names) * width, width), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(width, num_classes)),
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> ConFEDEOutput:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        x, steps = given.sequences, given.masks
        pooled = {m: masked_mean(net(x[m], steps[m]), steps[m]) for m, net in self.temporal.items()}
        present = torch.stack(list(given.present.values()), dim=1)
        similar, dissimilar, alone = (
            torch.stack([nets[m](vector) for m, vector in pooled.items()], dim=1)
            for nets in (self.similar, self.dissimilar, self.branch_heads)
        )
        similar, dissimilar = zero_pads(similar, present), zero_pads(dissimilar, present)
        logits = self.head(torch.cat([similar, dissimilar], dim=1).flatten(1))
        return ConFEDEOutput(logits, similar, dissimilar, alone, present, self.temperature)
