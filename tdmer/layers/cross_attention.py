"""Cross-modal attention: private features of one modality enhanced by those of the others."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_count, check_features, check_mask, check_names, check_real
from tdmer.layers._cpu import Dropout, ReLUDropout
from tdmer.masks import is_readable, unless_full, zero_pads

# On a CPU, scores of 4 MB or less stay in the cache: plain products beat the kernel in blocks.
_FEW_SCORES = 2**20
# Entries of float32 in the widest vectors of a CPU, and the keys from which a softmax uses them.
_VECTOR = 16
_FEW_KEYS = 16


def sinusoidal_positions(length: int, width: int) -> Float[Tensor, "t d"]:
    """Sinusoidal position encodings: sines in the first half of the features, then cosines.

    Args:
        length: Number of steps ``t``.
        width: Number of features ``d``.

    Returns:
        Entries in [-1, 1], shape ``(t, d)``, float32.

    Source:
        Vaswani et al., "Attention is all you need", NeurIPS 2017, Section 3.5.

    Example:
        >>> sinusoidal_positions(2, 4)
        tensor([[0.0000, 0.0000, 1.0000, 1.0000],
                [0.8415, 0.0100, 0.5403, 0.9999]])
    """
    half = (width + 1) // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float32) * 2 / width)
    angles = torch.arange(length, dtype=torch.float32).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


class CrossAttention(nn.Module):
    r"""Multi-head attention of one target to several sources, summed over the present ones.

    For each source ``p``: ``softmax(Q_p K_p^T / sqrt(d_head)) V_p`` with the query from the target
    and key and value from the source, then one output projection per source; their sum is taken
    as one matrix product over all sources. With one source it is
    :class:`torch.nn.MultiheadAttention`. The attention maps are never materialised.

    Args:
        sources: Names of the sources.
        width: Width ``d`` of target and sources, a multiple of ``heads``.
        heads: Number of attention heads.
        positions: Whether sinusoidal positions are added to queries and keys (not to values).

    Source:
        Xu et al., "TDMER", ICASSP 2025, Section II.C; Tsai et al., "Multimodal transformer for
        unaligned multimodal language sequences", ACL 2019.

    Example:
        >>> attention = CrossAttention(["audio", "video"], width=8, heads=2)
        >>> sources = {"audio": torch.zeros(2, 7, 8), "video": torch.zeros(2, 9, 8)}
        >>> attention(torch.zeros(2, 5, 8), sources).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self, sources: Sequence[str], width: int, heads: int, *, positions: bool = True
    ) -> None:
        super().__init__()
        check_names("sources", sources)
        check_count("width", width)
        check_count("heads", heads)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.sources = tuple(sources)
        self.heads = heads
        self.positions = positions
        self.query = nn.Linear(width, len(sources) * width)
        self.key_value = nn.ModuleDict({name: nn.Linear(width, 2 * width) for name in sources})
        self.out = nn.Linear(len(sources) * width, width)

    def forward(
        self,
        target: Float[Tensor, "b t d"],
        sources: Mapping[str, Float[Tensor, "b _ d"]],
        masks: Mapping[str, Bool[Tensor, "b _"] | None] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Gather from the sources what the target asks for.

        Args:
            target: Queries come from here.
            sources: Keys and values come from here, one entry per source.
            masks: True where a step of a source is real; None or a missing entry: every step.

        Returns:
            ``(b, t, d)``; 0 for a sample all of whose sources are wholly masked.
        """
        width = self.out.out_features
        check_features("target", target, ndim=3, width=width)
        _check_sources(sources, self.sources)
        if self.positions:
            target = target + _positions(target)
        queries = self.query(target)
        found, reached = [], []
        for name, query in zip(self.sources, queries.split(width, dim=-1), strict=True):
            source, mask = sources[name], None if masks is None else masks.get(name)
            check_features(f"sources[{name!r}]", source, ndim=3, width=width)
            check_mask(f"masks[{name!r}]", mask, source.shape[:2])
            projection = self.key_value[name]
            key, value = projection(zero_pads(source, mask)).split(width, dim=-1)
            if self.positions:
                # W (x + positions) = W x + W positions: the values, which share W x, have none.
                weight = projection.get_parameter("weight")[:width]
                key = key + F.linear(_positions(source), weight)
            found.append(self._attend(query, key, value, mask))
            reached.append(mask)
        summed: Tensor = self.out(torch.cat(found, dim=2).flatten(2))
        present = [mask.any(dim=1) for mask in reached if mask is not None]
        if len(present) < len(reached):
            return summed
        return _zero_samples(summed, torch.stack(present).any(dim=0))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return what each head finds, ``(b, t, heads, d / heads)``; 0 where there is no key."""
        if mask is not None and is_readable(mask):
            key, value, mask = _without_hidden(key, value, mask)
        width = query.shape[-1] // self.heads
        query, key, value = (
            x.view(*x.shape[:2], self.heads, width).transpose(1, 2) for x in (query, key, value)
        )
        keys = present = None
        if mask is not None:
            # A softmax over no key at all is undefined: such rows attend to everything, then are 0.
            present = mask.any(dim=1)
            keys = (mask | ~present.unsqueeze(1))[:, None, None, :]
        at_once = is_readable(query) and (
            key.shape[2] < _FEW_KEYS or query.shape[:3].numel() * key.shape[2] <= _FEW_SCORES
        )
        found = (_attend_at_once if at_once else _attend_in_blocks)(query, key, value, keys)
        found = found.transpose(1, 2)
        return found if present is None else _zero_samples(found, present)


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
    """Scaled dot-product attention whose scores are kept."""
    query = query * query.shape[-1] ** -0.5
    if key.shape[2] >= _FEW_KEYS:
        scores = query @ key.transpose(2, 3)
        if keys is not None:
            scores = scores.masked_fill_(~keys, -torch.inf)
        return scores.softmax(dim=3) @ value
    # Queries along the rows: a softmax over rows shorter than a vector is ten times slower. It
    # beats the kernel for any number of queries.
    scores = key @ query.transpose(2, 3)
    if keys is not None:
        scores = scores.masked_fill_(~keys.transpose(2, 3), -torch.inf)
    return scores.softmax(dim=2).transpose(2, 3) @ value


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
    """Scaled dot-product attention by PyTorch's kernel, which keeps no scores."""
    width = query.shape[-1]
    # The CPU multiplies slowly where a head is not a multiple of 16 features wide.
    pad = -width % _VECTOR if query.device.type == "cpu" else 0
    if pad:  # F.pad copies even where it adds nothing.
        query, key, value = (F.pad(x, (0, pad)) for x in (query, key, value))
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, scale=width**-0.5)
    return found[..., :width]


def _check_sources(sources: Mapping[str, Tensor], names: Sequence[str]) -> None:
    if set(sources) != set(names):
        raise ValueError(f"sources must be {list(names)}, got {list(sources)}")


def _positions(x: Tensor) -> Tensor:
    positions = _kept_positions if is_readable(x) else sinusoidal_positions
    return positions(x.shape[1], x.shape[2]).to(x)


@lru_cache(maxsize=32)
def _kept_positions(length: int, width: int) -> Tensor:
    # Made where no later call is surprised: a tensor of inference mode could not be trained with.
    with torch.inference_mode(False), torch.device("cpu"):
        return sinusoidal_positions(length, width)


def _without_hidden(
    key: Tensor, value: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring the real steps to the front and cut what no sample needs; no mask where all is real."""
    steps = mask.sum(dim=1).tolist()
    longest = max(1, *steps) if steps else 1
    if longest < mask.shape[1]:
        order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]
        rows = torch.arange(len(mask)).unsqueeze(1)
        key, value, mask = key[rows, order], value[rows, order], mask[rows, order]
    return key, value, None if min(steps, default=0) == longest else mask


def _zero_samples(x: Tensor, present: Tensor) -> Tensor:
    needed = unless_full(present)
    return x if needed is None else x.masked_fill(~needed.view(-1, *[1] * (x.ndim - 1)), 0.0)


class CrossModalBlock(nn.Module):
    """Pre-norm block: cross-attention to the sources, then a feed-forward net, both residual.

    The target is normalised before each; the sources are taken as they are.

    Args:
        sources: Names of the sources.
        width: Width ``d`` of target and sources, a multiple of ``heads``.
        heads: Number of attention heads.
        dropout: Dropout on both residual updates and inside the feed-forward net, in [0, 1).
        positions: Whether sinusoidal positions are added to queries and keys.

    Example:
        >>> block = CrossModalBlock(["audio"], width=8, heads=2)
        >>> block(torch.zeros(2, 5, 8), {"audio": torch.zeros(2, 7, 8)}).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        sources: Sequence[str],
        width: int,
        heads: int,
        *,
        dropout: float = 0.0,
        positions: bool = True,
    ) -> None:
        super().__init__()
        check_real("dropout", dropout, below=1.0)
        self.attention = CrossAttention(sources, width, heads, positions=positions)
        self.target_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            ReLUDropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.dropout = Dropout(dropout)

    def forward(
        self,
        target: Float[Tensor, "b t d"],
        sources: Mapping[str, Float[Tensor, "b _ d"]],
        target_mask: Bool[Tensor, "b t"] | None = None,
        source_masks: Mapping[str, Bool[Tensor, "b _"] | None] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Enhance the target; its length and mask stay, its padded steps are 0."""
        target = zero_pads(target, target_mask)
        update = self.attention(self.target_norm(target), sources, source_masks)
        target = target + self.dropout(update)
        return zero_pads(target + self.dropout(self.feed_forward(target)), target_mask)


class CrossModalEncoder(nn.Module):
    """Stack of cross-modal blocks for one target; all see the same sources, normalised once.

    Args:
        sources: Names of the sources.
        width: Width ``d`` of target and sources, a multiple of ``heads``.
        heads: Number of attention heads.
        layers: Number of blocks; 0 returns the target as it is.
        dropout: Dropout of every block, in [0, 1).
        positions: Whether sinusoidal positions are added to queries and keys.

    Example:
        >>> encoder = CrossModalEncoder(["audio"], width=8, heads=2, layers=2)
        >>> encoder(torch.zeros(2, 5, 8), {"audio": torch.zeros(2, 7, 8)}).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        sources: Sequence[str],
        width: int,
        heads: int,
        *,
        layers: int = 1,
        dropout: float = 0.0,
        positions: bool = True,
    ) -> None:
        super().__init__()
        check_names("sources", sources)
        check_count("layers", layers, least=0)
        self.sources = tuple(sources)
        normed = self.sources if layers else ()
        self.source_norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in normed})
        self.blocks = nn.ModuleList(
            CrossModalBlock(sources, width, heads, dropout=dropout, positions=positions)
            for _ in range(layers)
        )

    def forward(
        self,
        target: Float[Tensor, "b t d"],
        sources: Mapping[str, Float[Tensor, "b _ d"]],
        target_mask: Bool[Tensor, "b t"] | None = None,
        source_masks: Mapping[str, Bool[Tensor, "b _"] | None] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Enhance the target; its length and mask stay, its padded steps are 0."""
        _check_sources(sources, self.sources)
        if not self.blocks:
            return zero_pads(target, target_mask)
        masks = {} if source_masks is None else source_masks
        normed = {
            name: norm(zero_pads(sources[name], masks.get(name)))
            for name, norm in self.source_norms.items()
        }
        for block in self.blocks:
            target = block(target, normed, target_mask, masks)
        return target
