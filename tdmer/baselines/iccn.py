"""Outer products of text with each other modality, correlated with one another."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_names
from tdmer.baselines.objective import Auxiliary
from tdmer.baselines.utterance import temporal_nets
from tdmer.inputs import Inputs
from tdmer.layers import Recurrent
from tdmer.masks import masked_mean, zero_pads
from tdmer.objective import Task
from tdmer.pretrained import Pretrained


class ICCNOutput(NamedTuple):
    """What :class:`ICCN` returns."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    text: Tensor
    """The vector of the anchor, ``(b, d)``."""
    interactions: dict[str, Tensor]
    """What is made of the outer product with each other modality, ``(b, c)``."""
    present: dict[str, Tensor]
    """True where a sample has both the anchor and that modality, ``(b,)``."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """Return ``correlation``, 0 where there is but one interaction."""
        found = [
            correlation_loss(
                self.interactions[p], self.interactions[q], self.present[p] & self.present[q]
            )
            for p, q in combinations(self.interactions, 2)
        ]
        value = torch.stack(found).mean() if found else self.logits.new_zeros(())
        return {"correlation": Auxiliary(0.1, value)}


def correlation_loss(
    x: Float[Tensor, "b c"],
    y: Float[Tensor, "b e"],
    mask: Bool[Tensor, " b"],
    *,
    ridge: float = 1e-2,
) -> Float[Tensor, ""]:
    """1 minus the mean canonical correlation of two samples, the loss of deep CCA.

    The canonical correlations are the singular values of ``L_x^-1 C_xy L_y^-T`` with the covariance
    ``C_xy`` and the Cholesky factors ``L`` of those of ``x`` and ``y``. Their sum has a finite
    gradient everywhere.

    Args:
        x: Features.
        y: Features of the same samples, as many or not.
        mask: True where a sample has both.
        ridge: Share of the mean variance that is added to every variance.

    Returns:
        A scalar in [0, 1].

    Source:
        Andrew et al., "Deep canonical correlation analysis", ICML 2013.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [2.0], [4.0]])
        >>> correlation_loss(x, 3 - x, torch.tensor([True, True, True])).round(decimals=4)
        tensor(0.0099)
    """
    count = mask.sum().clamp(min=1)
    precise = torch.promote_types(x.dtype, torch.float32)
    x, y = (zero_pads(part.to(precise), mask) for part in (x, y))
    x, y = (zero_pads(part - part.sum(dim=0) / count, mask) for part in (x, y))
    x_factor, y_factor = (
        torch.linalg.cholesky(_covariance(part, part, count) + _ridge(part, count, ridge))
        for part in (x, y)
    )
    half = torch.linalg.solve_triangular(x_factor, _covariance(x, y, count), upper=False)
    whole = torch.linalg.solve_triangular(y_factor, half.transpose(0, 1), upper=False)
    correlations: Tensor = torch.linalg.svdvals(whole)
    return 1 - correlations.mean()


def _covariance(x: Tensor, y: Tensor, count: Tensor) -> Tensor:
    return x.transpose(0, 1) @ y / count


def _ridge(x: Tensor, count: Tensor, share: float) -> Tensor:
    mean = x.square().sum() / count / x.shape[1]
    return (share * mean + 1e-8) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


class ICCN(Pretrained):
    """Interaction canonical correlation network: text by each other modality, as an image.

    The outer product of the vector of the text and that of another modality goes through a
    convolutional net; what comes of the different modalities is to be correlated, and is read with
    the vector of the text. A sample without text has no products: its prediction is that of none.

    Args:
        dims: Feature width of every modality by name, two or more, in any order.
        num_classes: Width ``k`` of the logits.
        anchor: The modality that is multiplied by each other one.
        width: Width ``d`` of the vectors, at least 10.
        correlated: Width ``c`` of what is made of a product.
        kernel_size: Steps under the first convolution.
        dropout: Dropout of the head, in [0, 1).
        input_dropout: Dropout of input features, in [0, 1).
        feature_dropout: Dropout of temporal features; both drop a feature from all steps.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, there is one modality only, or none is the anchor.

    Source:
        Sun et al., "Learning relationships between text, audio, and video via deep canonical
        correlation for multimodal language analysis", AAAI 2020.

    Example:
        >>> import torch
        >>> model = ICCN({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> output = model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)})
        >>> list(output.interactions)
        ['audio', 'video']
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    temporal: nn.ModuleDict
    recurrent: nn.ModuleDict
    images: nn.ModuleDict
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        anchor: str = "text",
        width: int = 32,
        correlated: int = 16,
        kernel_size: int = 5,
        dropout: float = 0.5,
        input_dropout: float = 0.3,
        feature_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_names("dims", list(dims), least=2)
        check_count("num_classes", num_classes)
        check_count("width", width, least=10)
        check_count("correlated", correlated)
        if anchor not in dims:
            raise ValueError(f"anchor must be one of {list(dims)}, got {anchor!r}")
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "anchor": anchor,
            "width": width,
            "correlated": correlated,
            "kernel_size": kernel_size,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "feature_dropout": feature_dropout,
        }
        self.modalities = tuple(dims)
        self.anchor = anchor
        others = [m for m in sorted(dims) if m != anchor]
        self.normalizations = Inputs(dims)
        self.temporal = temporal_nets(
            dims,
            width,
            kernel_size=kernel_size,
            input_dropout=input_dropout,
            feature_dropout=feature_dropout,
        )
        self.recurrent = nn.ModuleDict({m: Recurrent(width, width) for m in others})
        side = ((width - 2) // 2 - 2) // 2
        self.images = nn.ModuleDict(
            {
                m: nn.Sequential(
                    *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2)),
                    *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
                    *(nn.Flatten(), nn.Linear(16 * side**2, correlated)),
                )
                for m in others
            }
        )
        self.head = nn.Sequential(
            *(nn.Linear(width + correlated * len(others), width), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(width, num_classes)),
        )

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> ICCNOutput:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        steps = given.masks
        x = {m: net(given.sequences[m], steps[m]) for m, net in self.temporal.items()}
        text = masked_mean(x[self.anchor], steps[self.anchor])
        interactions: dict[str, Tensor] = {}
        both: dict[str, Tensor] = {}
        for m, image in self.images.items():
            vector = self.recurrent[m](x[m], steps[m]).last
            both[m] = given.present[self.anchor] & given.present[m]
            product = (text.unsqueeze(2) * vector.unsqueeze(1)).unsqueeze(1)
            interactions[m] = zero_pads(image(product), both[m])
        logits = self.head(torch.cat([text, *interactions.values()], dim=1))
        return ICCNOutput(logits, text, interactions, both)
