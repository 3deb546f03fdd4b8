"""The multimodal transformer: every modality attends to each of the others."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_names
from tdmer.baselines.objective import Plain
from tdmer.baselines.utterance import temporal_nets
from tdmer.inputs import Inputs
from tdmer.layers import CrossModalBlock, CrossModalEncoder
from tdmer.masks import zero_pads
from tdmer.pretrained import Pretrained


class _Target(nn.Module):
    """What one modality gathers from the others: a stack per source, then self-attention."""

    def __init__(
        self, sources: list[str], width: int, heads: int, layers: int, memory: int, **options: Any
    ) -> None:
        super().__init__()
        gathered = width * len(sources)
        self.encoders = nn.ModuleDict(
            {p: CrossModalEncoder([p], width, heads, layers=layers, **options) for p in sources}
        )
        self.norms = nn.ModuleDict({p: nn.LayerNorm(width) for p in sources})
        self.memory = nn.ModuleList(
            CrossModalBlock(["itself"], gathered, heads, **options) for _ in range(memory)
        )
        self.memory_norm = nn.LayerNorm(gathered)

    def forward(
        self,
        x: Tensor,
        sources: Mapping[str, Tensor],
        mask: Tensor | None,
        masks: Mapping[str, Tensor | None],
    ) -> Tensor:
        """Return the last real step."""
        found: list[Tensor] = []
        for (p, encoder), norm in zip(self.encoders.items(), self.norms.values(), strict=True):
            found.append(norm(encoder(x, {p: sources[p]}, mask, {p: masks[p]})))
        x = zero_pads(torch.cat(found, dim=2), mask)
        x = x * x.shape[2] ** 0.5
        for block in self.memory:
            normed = cast(CrossModalBlock, block).target_norm(x)
            x = block(x, {"itself": normed}, mask, {"itself": mask})
        return _last_step(self.memory_norm(x), mask)


class MulT(Pretrained):
    """Multimodal transformer: cross-modal attention of each modality to each other one.

    For each pair of a target and a source there is a stack of cross-modal blocks; what a target has
    gathered from all sources goes through a stack of self-attention, and its last real step is what
    the head reads. A missing modality gives and gets 0.

    Args:
        dims: Feature width of every modality by name, two or more, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width ``d`` of a modality, a multiple of ``heads``.
        heads: Heads of all attention.
        layers: Blocks of every pair.
        memory: Blocks of self-attention of every target.
        kernel_size: Steps under the first convolution.
        dropout: Dropout inside the blocks, in [0, 1).
        input_dropout: Dropout of input features, in [0, 1).
        feature_dropout: Dropout of temporal features; both drop a feature from all steps.
        head_dropout: Dropout of the head, in [0, 1).
        positions: Whether attention sees positions.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or there is one modality only.

    Source:
        Tsai et al., "Multimodal transformer for unaligned multimodal language sequences", ACL 2019.

    Example:
        >>> import torch
        >>> model = MulT({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)}).logits.shape
        torch.Size([2, 7])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    temporal: nn.ModuleDict
    targets: nn.ModuleDict
    residual: nn.Sequential
    head: nn.Linear

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 40,
        heads: int = 8,
        layers: int = 4,
        memory: int = 3,
        kernel_size: int = 5,
        dropout: float = 0.1,
        input_dropout: float = 0.3,
        feature_dropout: float = 0.25,
        head_dropout: float = 0.5,
        positions: bool = True,
    ) -> None:
        super().__init__()
        check_names("dims", list(dims), least=2)
        check_count("num_classes", num_classes)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "heads": heads,
            "layers": layers,
            "memory": memory,
            "kernel_size": kernel_size,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "feature_dropout": feature_dropout,
            "head_dropout": head_dropout,
            "positions": positions,
        }
        self.modalities = tuple(dims)
        names = sorted(dims)
        gathered = width * (len(names) - 1)
        self.normalizations = Inputs(dims)
        self.temporal = temporal_nets(
            dims,
            width,
            kernel_size=kernel_size,
            input_dropout=input_dropout,
            feature_dropout=feature_dropout,
        )
        shared: dict[str, Any] = {"dropout": dropout, "positions": positions}
        self.targets = nn.ModuleDict(
            {
                m: _Target([p for p in names if p != m], width, heads, layers, memory, **shared)
                for m in names
            }
        )
        joined = gathered * len(names)
        self.residual = nn.Sequential(
            *(nn.Linear(joined, joined), nn.ReLU()),
            *(nn.Dropout(head_dropout), nn.Linear(joined, joined)),
        )
        self.head = nn.Linear(joined, num_classes)

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> Plain:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        steps = given.masks
        x = {m: net(given.sequences[m], steps[m]) for m, net in self.temporal.items()}
        x = {m: sequence * sequence.shape[2] ** 0.5 for m, sequence in x.items()}
        last = [target(x[m], x, steps[m], steps) for m, target in self.targets.items()]
        joined = torch.cat(last, dim=1)
        fused = joined + self.residual(joined)
        return Plain(self.head(fused), fused)


def _last_step(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the last real step of every sequence; 0 where it has none."""
    if mask is None:
        return x[:, -1]
    index = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    found = x.gather(1, index[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
    return zero_pads(found, mask.any(dim=1))
