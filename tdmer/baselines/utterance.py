"""The first nets of the modalities, where several systems have the same."""

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer.layers import Recurrent, TemporalConv
from tdmer.masks import masked_mean, zero_pads


class Averaged(nn.Module):
    """The mean of the steps through three layers, as TFN has it for sound and face.

    Args:
        features: Width ``f`` of the input.
        width: Width ``d`` of the output.
        dropout: Dropout of the input, in [0, 1).

    Example:
        >>> import torch
        >>> Averaged(3, 8)(torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)).any()
        tensor(False)
    """

    dropout: nn.Dropout
    layers: nn.Sequential

    def __init__(self, features: int, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(nn.Linear(features, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
        )

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Return one vector for each sequence; 0 where it has no real step."""
        mean = masked_mean(x, mask).to(next(self.layers.parameters()).dtype)
        return zero_pads(self.layers(self.dropout(mean)), None if mask is None else mask.any(dim=1))


class Read(nn.Module):
    """The last state of an LSTM through one layer, as TFN has it for text.

    Args:
        features: Width ``f`` of the input.
        width: Width ``d`` of the output, half that of the state.
        dropout: Dropout of the input, of a feature in all steps, in [0, 1).

    Example:
        >>> import torch
        >>> Read(3, 8)(torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)).any()
        tensor(False)
    """

    dropout: nn.Dropout1d
    recurrent: Recurrent
    project: nn.Linear

    def __init__(self, features: int, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout1d(dropout)
        self.recurrent = Recurrent(features, 2 * width)
        self.project = nn.Linear(2 * width, width)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Return one vector for each sequence; 0 where it has no real step."""
        x = self.dropout(x.transpose(1, 2)).transpose(1, 2)
        found = self.project(self.recurrent(x, mask).last)
        return zero_pads(found, None if mask is None else mask.any(dim=1))


def utterance_nets(
    dims: Mapping[str, int], width: int, read: Sequence[str] | None, *, dropout: float = 0.0
) -> nn.ModuleDict:
    """Return a net for each modality, in the order of the names.

    Args:
        dims: Feature width of every modality.
        width: Width ``d`` of what the nets return.
        read: Modalities that get a :class:`Read`; None: ``"text"``, if there is. The others get an
            :class:`Averaged`.
        dropout: Of all nets.

    Raises:
        ValueError: ``read`` names no modality.

    Example:
        >>> utterance_nets({"text": 3, "audio": 2}, 8, None)["text"].recurrent
        Recurrent(
          (lstm): LSTM(3, 16, batch_first=True)
        )
    """
    unknown = [m for m in read or () if m not in dims]
    if unknown:
        raise ValueError(f"read must be of {list(dims)}, got {unknown}")
    names = ("text",) if read is None else read
    return nn.ModuleDict(
        {
            m: (Read if m in names else Averaged)(dims[m], width, dropout=dropout)
            for m in sorted(dims)
        }
    )


def temporal_nets(
    dims: Mapping[str, int],
    width: int,
    *,
    kernel_size: int = 1,
    input_dropout: float = 0.0,
    feature_dropout: float = 0.0,
) -> nn.ModuleDict:
    """Return a :class:`~tdmer.layers.TemporalConv` for each modality, in the order of the names.

    Args:
        dims: Feature width of every modality.
        width: Width ``d`` of what they return.
        kernel_size: Of all.
        input_dropout: Of all.
        feature_dropout: Of what they return.

    Example:
        >>> list(temporal_nets({"text": 3, "audio": 2}, 8))
        ['audio', 'text']
    """
    return nn.ModuleDict(
        {
            m: TemporalConv(
                dims[m],
                width,
                kernel_size=kernel_size,
                dropout=input_dropout,
                output_dropout=feature_dropout,
            )
            for m in sorted(dims)
        }
    )
