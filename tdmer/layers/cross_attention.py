"""Cross-modal attention: private features of one modality enhanced by those of the others."""

import functools
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tdmer._checks import check_count, check_features, check_mask, check_names, check_real
from tdmer.layers._cpu import Dropout, ReLUDropout
from tdmer.masks import is_readable, without_hidden, zero_pads

# On a CPU, scores of 4 MB or less stay in the cache: plain products beat the kernel in blocks.
_FEW_SCORES = 2**20
# Entries of float32 in the widest vectors of a CPU.
_VECTOR = 16


def sinusoidal_positions(
    length: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "t d"]:
    """Sinusoidal position encodings: sines in the first half of the features, then cosines.

    Args:
        length: Number of steps ``t``.
        width: Number of features ``d``.
        dtype: Floating point type of the result; computed in float32 at least.
        device: Where the result is made.

    Returns:
        Entries in [-1, 1], shape ``(t, d)``.

    Source:
        Vaswani et al., "Attention is all you need", NeurIPS 2017, Section 3.5.

    Example:
        >>> sinusoidal_positions(2, 4)
        tensor([[0.0000, 0.0000, 1.0000, 1.0000],
                [0.8415, 0.0100, 0.5403, 0.9999]])
    """
    precise = torch.promote_types(dtype, torch.float32)
    half = (width + 1) // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=precise, device=device) * 2 / width)
    angles = torch.arange(length, dtype=precise, device=device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].to(dtype)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def _kept_positions(length: int, width: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    return sinusoidal_positions(length, width, dtype=dtype, device=device)


class CrossAttention(nn.Module):
    r"""Multi-head attention of one target to several sources, summed over the present ones.

    For each source ``p``: ``softmax(Q_p K_p^T / sqrt(d_head)) V_p`` with the query from the target
    and key and value from the source, then an output projection. With one source it is
    :class:`torch.nn.MultiheadAttention`. The attention maps are never materialised. Every source
    has projections of its own, held by its name: the order of the sources changes nothing.

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

    sources: tuple[str, ...]
    query: nn.ModuleDict
    key: nn.ModuleDict
    value: nn.ModuleDict
    out: nn.ModuleDict

    def __init__(
        self, sources: Sequence[str], width: int, heads: int, *, positions: bool = True
    ) -> None:
        super().__init__()
        check_names("sources", sources)
        check_count("width", width)
        check_count("heads", heads)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.width = width
        self.heads = heads
        self.positions = positions
        # In the order of the names, in which they are summed: the caller's would show in rounding.
        self.sources = names = tuple(sorted(sources))
        self.query, self.key, self.value, self.out = (
            nn.ModuleDict({name: nn.Linear(width, width) for name in names}) for _ in range(4)
        )

    def extra_repr(self) -> str:
        """Show the options."""
        return f"width={self.width}, heads={self.heads}, positions={self.positions}"

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
        check_features("target", target, ndim=3, width=self.width)
        _check_sources(sources, self.sources)
        target = self._placed(target)
        found: list[Tensor] = []
        for name in self.sources:
            source, mask = sources[name], None if masks is None else masks.get(name)
            check_features(f"sources[{name!r}]", source, ndim=3, width=self.width)
            check_mask(f"masks[{name!r}]", mask, source.shape[:2])
            source = zero_pads(source, mask)
            mask, (keys, values) = without_hidden(mask, self._placed(source), source)
            update = self._attend(
                self.query[name](target), self.key[name](keys), self.value[name](values), mask
            )
            update = self.out[name](update)
            if mask is not None:
                update = update.masked_fill(~mask.any(dim=1)[:, None, None], 0.0)
            found.append(update)
        total, *others = found
        for update in others:
            total = total + update
        return total

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of every head; to all steps where there is no real one."""
        width = self.width // self.heads
        query, key, value = (
            x.view(*x.shape[:2], self.heads, width).transpose(1, 2) for x in (query, key, value)
        )
        if mask is not None:
            # A softmax over no key at all is undefined.
            mask = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        few = is_readable(query) and query.shape[:3].numel() * key.shape[2] <= _FEW_SCORES
        found = (_attend_at_once if few else _attend_in_blocks)(query, key, value, mask)
        return found.transpose(1, 2).flatten(2)

    def _placed(self, x: Tensor) -> Tensor:
        """Add the positions."""
        if not self.positions:
            return x
        make = _kept_positions if is_readable(x) else sinusoidal_positions
        return x + make(x.shape[1], self.width, dtype=x.dtype, device=x.device)


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention whose scores are kept."""
    query = query * query.shape[-1] ** -0.5
    # A softmax over rows shorter than a vector goes entry by entry: few keys lie along the columns.
    few = key.shape[2] < _VECTOR
    scores = key @ query.transpose(2, 3) if few else query @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~(mask.transpose(2, 3) if few else mask), -torch.inf)
    shares = scores.softmax(dim=2).transpose(2, 3) if few else scores.softmax(dim=3)
    return shares @ value


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention by PyTorch's kernel, which keeps no scores."""
    width = query.shape[-1]
    # The CPU multiplies slowly where a head is not a multiple of a vector wide.
    pad = -width % _VECTOR if query.device.type == "cpu" else 0
    if pad:  # F.pad copies even where it adds nothing.
        query, key, value = (F.pad(x, (0, pad)) for x in (query, key, value))
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=width**-0.5)
    return found[..., :width]


def _check_sources(sources: Mapping[str, Tensor], names: Sequence[str]) -> None:
    if not isinstance(sources, Mapping):
        raise TypeError(f"sources must be a mapping by name, got {type(sources).__name__}")
    if set(sources) != set(names):
        raise ValueError(f"sources must be {list(names)}, got {list(sources)}")


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

    attention: CrossAttention
    target_norm: nn.LayerNorm
    feed_forward: nn.Sequential
    dropout: nn.Module

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

    Attributes:
        recompute: Whether training keeps only what goes into a block and computes the block anew
            for the gradient: less memory for more time, and the same result. False.

    Example:
        >>> encoder = CrossModalEncoder(["audio"], width=8, heads=2, layers=2)
        >>> encoder(torch.zeros(2, 5, 8), {"audio": torch.zeros(2, 7, 8)}).shape
        torch.Size([2, 5, 8])
    """

    sources: tuple[str, ...]
    source_norms: nn.ModuleDict
    blocks: nn.ModuleList

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
        self.sources = tuple(sorted(sources))
        self.recompute = False
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
            if self.recompute and self.training:
                target = checkpoint(block, target, normed, target_mask, masks, use_reentrant=False)
            else:
                target = block(target, normed, target_mask, masks)
        return target
