"""Multimodal factorisation: one factor for the label, and one for each modality."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count
from tdmer.baselines.objective import Auxiliary
from tdmer.inputs import Inputs
from tdmer.layers import Recurrent
from tdmer.masks import real_first, zero_pads
from tdmer.objective import Task
from tdmer.pretrained import Pretrained


class MFMOutput(NamedTuple):
    """What :class:`MFM` returns. The real steps of a sequence come first here."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    label_factor: Tensor
    """What all modalities together say of the label, ``(b, d)``."""
    factors: dict[str, Tensor]
    """What is of one modality, ``(b, d)``."""
    sequences: dict[str, Tensor]
    """The normalised inputs, ``(b, t_m, f_m)``."""
    reconstructed: dict[str, Tensor]
    """The inputs, made of both factors."""
    masks: dict[str, Tensor]
    """True where a step is real, ``(b, t_m)``."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """Return ``reconstruction`` and ``prior`` (maximum mean discrepancy)."""
        rebuilt, priors = [], [prior_loss(self.label_factor)]
        for m, mask in self.masks.items():
            squares = (self.reconstructed[m] - self.sequences[m]).square().mean(dim=2)
            rebuilt.append(squares.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1))
            priors.append(prior_loss(self.factors[m], mask.any(dim=1)))
        return {
            "reconstruction": Auxiliary(0.1, torch.stack(rebuilt).sum()),
            "prior": Auxiliary(0.1, torch.stack(priors).sum()),
        }


def prior_loss(
    z: Float[Tensor, "b d"], mask: Bool[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy between a sample and the standard normal distribution.

    The kernel is ``exp(-||x - y||^2 / d)``; its means over the normal distribution are known, so
    that none is drawn.

    Args:
        z: The sample.
        mask: True where a row counts; None: all.

    Returns:
        A scalar of at least 0, up to rounding; 0 if no row counts.

    Source:
        Gretton et al., "A kernel two-sample test", JMLR 2012.

    Example:
        >>> import torch
        >>> near = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> prior_loss(near) < 0.01 < prior_loss(near + 1)
        tensor(True)
    """
    d = z.shape[1]
    z = zero_pads(z, mask)
    counts = z.new_ones(len(z)) if mask is None else mask.to(z.dtype)
    shares = counts / counts.sum().clamp(min=1)
    squares = z.square().sum(dim=1)
    gaps = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * z @ z.transpose(0, 1)).clamp(min=0)
    between = shares @ (-gaps / d).exp() @ shares
    across = (d / (d + 2)) ** (d / 2) * (shares * (-squares / (d + 2)).exp()).sum()
    within = (d / (d + 4)) ** (d / 2) * shares.sum()
    discrepancy: Tensor = between - 2 * across + within
    return discrepancy


def _layers(features: int, hidden: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
    )


class _MemoryFusion(nn.Module):
    """The memory fusion network: cells, and a memory that attends to their changes."""

    cells: nn.ModuleDict
    attend: nn.Sequential
    propose: nn.Sequential
    keep: nn.Sequential
    write: nn.Sequential

    def __init__(self, dims: Mapping[str, int], width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.cells = nn.ModuleDict({m: nn.LSTMCell(dims[m], width) for m in sorted(dims)})
        window = 2 * width * len(dims)
        self.attend = _layers(window, width, window, dropout)
        self.propose = _layers(window, width, width, dropout)
        self.keep, self.write = (_layers(window + width, width, width, dropout) for _ in range(2))

    def forward(self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Return the last states and the memory; a modality at its end waits for the others."""
        names = list(self.cells)
        first = sequences[names[0]]
        memory = first.new_zeros(len(first), self.width)
        state, cell = (dict.fromkeys(names, memory) for _ in range(2))
        for step in range(max(x.shape[1] for x in sequences.values())):
            before = [cell[m] for m in names]
            goes_on = torch.zeros_like(memory[:, :1], dtype=torch.bool)
            for m, net in self.cells.items():
                if step < sequences[m].shape[1]:
                    real = masks[m][:, step, None]
                    h, c = net(sequences[m][:, step], (state[m], cell[m]))
                    state[m] = torch.where(real, h, state[m])
                    cell[m] = torch.where(real, c, cell[m])
                    goes_on = goes_on | real
            window = torch.cat(before + [cell[m] for m in names], dim=1)
            attended = self.attend(window).softmax(dim=1) * window
            both = torch.cat([attended, memory], dim=1)
            kept = self.keep(both).sigmoid() * memory
            written = self.write(both).sigmoid() * self.propose(attended).tanh()
            memory = torch.where(goes_on, kept + written, memory)
        return torch.cat([*state.values(), memory], dim=1)


class _Decoder(nn.Module):
    """A cell that goes on from a vector alone, and a layer that makes steps of its states."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)
        self.out = nn.Linear(width, features)

    def forward(self, start: Tensor, steps: int) -> Tensor:
        state, cell = self.cell(start)
        states = [state]
        for _ in range(steps - 1):
            state, cell = self.cell(state, (state, cell))
            states.append(state)
        made: Tensor = self.out(torch.stack(states, dim=1))
        return made


class MFM(Pretrained):
    """Multimodal factorisation model: a label factor and modality factors that make the inputs.

    The label factor is of a memory fusion network over all modalities, a modality's own factor of
    an LSTM. Each goes through two layers; the first alone predicts, and with a modality's own it
    has to make that modality's sequence. All factors are to be normally distributed.

    The memory fusion network goes through the modalities step by step, and so takes them for
    aligned: the first real step of each with that of the others, and so on. One whose end has come
    keeps its state. It is a loop over time, which is slow for long sequences.

    Args:
        dims: Feature width of every modality by name, any number, in any order.
        num_classes: Width ``k`` of the logits.
        width: Width ``d`` of states, memory and factors.
        factor_width: Width of what is made of a factor.
        dropout: Dropout of all nets, in [0, 1).
        input_dropout: Dropout of input features, from all steps, in [0, 1).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Source:
        Tsai et al., "Learning factorized multimodal representations", ICLR 2019; Zadeh et al.,
        "Memory fusion network for multi-view sequential learning", AAAI 2018.

    Example:
        >>> import torch
        >>> model = MFM({"text": 300, "audio": 74, "video": 35}, num_classes=7)
        >>> output = model({"text": torch.zeros(2, 9, 300), "audio": torch.zeros(2, 20, 74)})
        >>> output.reconstructed["audio"].shape
        torch.Size([2, 20, 74])
    """

    options: dict[str, Any]
    modalities: tuple[str, ...]
    normalizations: Inputs
    input_dropout: nn.Dropout1d
    fusion: _MemoryFusion
    label_encoder: nn.Linear
    encoders: nn.ModuleDict
    projections: nn.ModuleDict
    label_layers: nn.Sequential
    layers: nn.ModuleDict
    decoders: nn.ModuleDict
    head: nn.Sequential

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 64,
        factor_width: int = 32,
        dropout: float = 0.3,
        input_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("factor_width", factor_width)
        self.options = {
            "dims": dict(dims),
            "num_classes": num_classes,
            "width": width,
            "factor_width": factor_width,
            "dropout": dropout,
            "input_dropout": input_dropout,
        }
        self.modalities = tuple(dims)
        names = sorted(dims)
        self.normalizations = Inputs(dims)
        self.input_dropout = nn.Dropout1d(input_dropout)
        self.fusion = _MemoryFusion(dims, width, dropout)
        self.label_encoder = nn.Linear(width * (len(dims) + 1), width)
        self.encoders = nn.ModuleDict({m: Recurrent(dims[m], width) for m in names})
        self.projections = nn.ModuleDict({m: nn.Linear(width, width) for m in names})
        sizes = width, factor_width, factor_width, dropout
        self.label_layers = nn.Sequential(_layers(*sizes), nn.ReLU())
        self.layers = nn.ModuleDict({m: nn.Sequential(_layers(*sizes), nn.ReLU()) for m in names})
        self.decoders = nn.ModuleDict({m: _Decoder(2 * factor_width, dims[m]) for m in names})
        self.head = _layers(factor_width, factor_width, num_classes, dropout)

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "b ... _"]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> MFMOutput:
        """Predict, from what :meth:`tdmer.model.TDMER.forward` takes."""
        given = self.normalizations(inputs, masks)
        dtype = self.label_encoder.weight.dtype
        targets: dict[str, Tensor] = {}
        real: dict[str, Tensor] = {}
        x: dict[str, Tensor] = {}
        factors: dict[str, Tensor] = {}
        for m, encoder in self.encoders.items():
            sequence, mask = given.sequences[m].to(dtype), given.masks[m]
            if mask is None:
                mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
            targets[m], _ = real_first(sequence, mask)
            real[m] = mask.sort(dim=1, descending=True).values
            x[m] = self.input_dropout(targets[m].transpose(1, 2)).transpose(1, 2)
            factors[m] = self.projections[m](encoder(x[m], real[m]).last)
        label_factor = self.label_encoder(self.fusion(x, real))
        label = self.label_layers(label_factor)
        reconstructed = {
            m: decoder(torch.cat([label, self.layers[m](factors[m])], dim=1), targets[m].shape[1])
            for m, decoder in self.decoders.items()
        }
        return MFMOutput(self.head(label), label_factor, factors, targets, reconstructed, real)
