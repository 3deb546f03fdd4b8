"""Multimodal factorisation: one factor for the label, and one for each modality."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

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
    """The memory fusion network: cells, and a memory that attends to their changes.

    Only what reads the memory goes from step to step; the rest is done for all steps at once.
    """

    cells: nn.ModuleDict
    attend: nn.Sequential
    propose: nn.Sequential
    keep: nn.Sequential
    write: nn.Sequential

    def __init__(self, dims: Mapping[str, int], width: int, dropout: float) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({m: Recurrent(dims[m], width) for m in sorted(dims)})
        window = 2 * width * len(dims)
        self.attend = _layers(window, width, window, dropout)
        self.propose = _layers(window, width, width, dropout)
        self.keep, self.write = (_layers(window + width, width, width, dropout) for _ in range(2))

    def forward(self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Return the last states and the memory; a modality at its end waits for the others."""
        steps = max(mask.shape[1] for mask in masks.values())
        last, cells, real = [], [], []
        for m, net in self.cells.items():
            states = net(sequences[m], masks[m])
            cell = _cells(net.lstm, sequences[m], states.sequence, masks[m])
            rest = steps - cell.shape[1]
            last.append(states.last)
            cells.append(torch.cat([cell, cell[:, -1:].expand(-1, rest, -1)], dim=1))
            real.append(F.pad(masks[m], (0, rest)))
        after = torch.cat(cells, dim=2)
        window = torch.cat([_shifted(after), after], dim=2)
        attended = self.attend(window).softmax(dim=2) * window
        proposed = self.propose(attended).tanh()
        # The first layers of both gates read the window and the memory.
        first = [cast(nn.Linear, gate[0]) for gate in (self.keep, self.write)]
        of_window, of_memory = torch.cat([layer.weight for layer in first]).split(
            [window.shape[2], last[0].shape[1]], dim=1
        )
        read = F.linear(attended, of_window, torch.cat([layer.bias for layer in first]))
        goes_on = torch.stack(real).any(dim=0).unsqueeze(2)
        memory = torch.zeros_like(last[0])
        for step in range(steps):
            hidden = read[:, step] + F.linear(memory, of_memory)
            keeps, writes = hidden.chunk(2, dim=1)
            kept = self.keep[1:](keeps).sigmoid() * memory
            written = self.write[1:](writes).sigmoid() * proposed[:, step]
            memory = torch.where(goes_on[:, step], kept + written, memory)
        return torch.cat([*last, memory], dim=1)


def _cells(lstm: Any, x: Tensor, states: Tensor, real: Tensor) -> Tensor:
    """Return the cells that go with the states of an LSTM, which does not tell them.

    After the last real step they stay as they are.
    """
    gates = F.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0)
    gates = gates + F.linear(_shifted(states), lstm.weight_hh_l0, lstm.bias_hh_l0)
    write, keep, made, _ = gates.chunk(4, dim=2)
    kept = keep.sigmoid().masked_fill(~real.unsqueeze(2), 1.0)
    written = zero_pads(write.sigmoid() * made.tanh(), real)
    cells = [written[:, 0]]
    for step in range(1, x.shape[1]):
        cells.append(torch.addcmul(written[:, step], kept[:, step], cells[-1]))
    return torch.stack(cells, dim=1)


def _shifted(x: Tensor) -> Tensor:
    """Return what was there one step earlier; before the first, 0."""
    return F.pad(x, (0, 0, 1, 0))[:, :-1]


class _Decoder(nn.Module):
    """A cell that goes on from a vector alone, and a layer that makes steps of its states.

    The state is the input of the next step, so that two weights read it; here their sum is one.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, features)

    def forward(self, start: Tensor, steps: int) -> Tensor:
        states, _ = self.lstm(F.pad(start.unsqueeze(1), (0, 0, 0, steps - 1)))
        made: Tensor = self.out(states)
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
