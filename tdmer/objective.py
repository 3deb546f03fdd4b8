"""The objective of TDMER (Eqs. 3, 12-14)."""

from collections.abc import Callable, Collection, Iterable
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tdmer._checks import check_choice, check_count, check_positive, check_real
from tdmer.fusion.tcp import LabelledTask, tcp_loss
from tdmer.losses.cmd import pairwise_cmd_loss
from tdmer.losses.cross_modal import cross_modal_loss, edge_entropy
from tdmer.losses.orthogonal import orthogonal_loss
from tdmer.losses.reconstruction import reconstruction_loss
from tdmer.masks import masked_mean
from tdmer.model import COMMON, TDMEROutput

TERMS = ("con", "rec", "cp", "pp", "en", "f", "dc", "dp")


class LossTerms(NamedTuple):
    """Every term of the objective, unweighted, and the total; all scalars."""

    total: Tensor
    """What to minimise (Eq. 14)."""
    task: Tensor
    """Supervised loss of the prediction (Eq. 13 without L_dc, L_dp)."""
    con: Tensor
    """Central moment discrepancy of the common features (Eq. 3)."""
    rec: Tensor
    """Reconstruction (Eq. 4)."""
    cp: Tensor
    """Similarity of common and private features (Eq. 5)."""
    pp: Tensor
    """Similarity of private features of different modalities (Eq. 6)."""
    en: Tensor
    """Similarity of common and enhanced private features (Eq. 9)."""
    f: Tensor
    """Classification and confidence of the branches (Eq. 12)."""
    dc: Tensor
    """Cross-modal learning of the common features (Eq. 8)."""
    dp: Tensor
    """Cross-modal learning of the enhanced private features (Eq. 8)."""
    common_entropy: Tensor
    """Mean entropy of the edges behind ``dc``, nats; near 0, the learning has collapsed."""
    enhanced_entropy: Tensor
    """Mean entropy of the edges behind ``dp``, nats."""


class TDMERLoss(nn.Module):
    r"""The objective of TDMER (Eq. 14).

    ``alpha (con + rec) + beta (cp + pp) + gamma en + delta f + task + dc + dp``. Every term is a
    mean over the batch; a term that needs two modalities is 0 where a batch has fewer; a term of
    weight 0 is not computed and reported as 0.

    Args:
        task: An object of :mod:`tdmer.tasks`.
        alpha: Weight of ``con`` and ``rec``.
        beta: Weight of ``cp`` and ``pp``.
        gamma: Weight of ``en``.
        delta: Weight of ``f``. Well below the default, the pull of ``dc`` keeps the logits of the
            common features constant.
        without: Names of terms to leave out (``con rec cp pp en f dc dp``), for ablations.
        entropy_weight: Weight of ``log(edges) - entropy`` of the edges of ``dc`` and ``dp``, which
            keeps the edges from collapsing onto one; 0 is the paper.
        n_moments: Orders of the central moment discrepancy.
        span: Length of the interval that holds the common features: 1 for sigmoid, 2 for tanh.
        samples: What ``con`` takes for a sample: ``"pooled"`` sequences, or single ``"steps"``,
            which are more and so give a less biased estimate.
        penalty: Elementwise function of the cosine in ``cp``, ``pp``, ``en``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or ``without`` names an unknown term.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eqs. 3-14.

    Example:
        >>> from tdmer import TDMER
        >>> from tdmer.tasks import Classification
        >>> model = TDMER({"text": 4, "audio": 3}, num_classes=2)
        >>> inputs = {"text": torch.zeros(2, 5, 4), "audio": torch.zeros(2, 6, 3)}
        >>> terms = TDMERLoss(Classification())(model(inputs), torch.tensor([0, 1]))
        >>> terms.total.backward()
    """

    def __init__(
        self,
        task: LabelledTask,
        *,
        alpha: float = 0.1,
        beta: float = 0.1,
        gamma: float = 0.1,
        delta: float = 5.0,
        without: Collection[str] = (),
        entropy_weight: float = 0.0,
        n_moments: int = 5,
        span: float = 1.0,
        samples: str = "pooled",
        penalty: Callable[[Tensor], Tensor] = torch.abs,
    ) -> None:
        super().__init__()
        weights = {"alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta}
        for name, value in weights.items():
            check_real(name, value)
        check_real("entropy_weight", entropy_weight)
        check_count("n_moments", n_moments)
        check_positive("span", span)
        check_choice("samples", samples, ("pooled", "steps"))
        if isinstance(without, str):
            raise TypeError(f"without must be a collection of names, got the string {without!r}")
        for name in without:
            check_choice("without", name, TERMS)
        self.task = task
        by_term = dict(zip(TERMS, (alpha, alpha, beta, beta, gamma, delta, 1.0, 1.0), strict=True))
        self.weights = {name: 0.0 if name in without else w for name, w in by_term.items()}
        self.entropy_weight = entropy_weight
        self.n_moments = n_moments
        self.span = span
        self.samples = samples
        self.penalty = penalty

    def forward(self, output: TDMEROutput, labels: Tensor) -> LossTerms:
        """Compute every term.

        Args:
            output: What the model returned.
            labels: Labels as the task takes them.
        """
        weights, masks, present = self.weights, output.masks, output.present
        losses = self.task(output.logits, labels)
        task = losses.sum() / self.task.labelled(labels).sum().clamp(min=1)
        terms = dict.fromkeys(TERMS, task.new_zeros(()))
        if weights["con"]:
            terms["con"] = self._common_discrepancy(output)
        if weights["rec"]:
            terms["rec"] = _sum(
                reconstruction_loss(output.reconstructed[m], output.features[m], mask=masks[m])
                for m in masks
            )
        if weights["cp"]:
            terms["cp"] = self._similarity_to_common(output, output.private)
        if weights["pp"]:
            terms["pp"] = self._similarity_between(output)
        if weights["en"]:
            terms["en"] = self._similarity_to_common(output, output.enhanced)
        if weights["f"]:
            terms["f"] = tcp_loss(
                self.task,
                output.branch_logits,
                output.weights,
                labels,
                present={COMMON: present.any(dim=1), **_by_modality(output, present)},
            )
        if weights["dc"]:
            terms["dc"] = cross_modal_loss(
                output.common_logits, output.common_edges, present=present
            )
        if weights["dp"]:
            terms["dp"] = cross_modal_loss(
                output.enhanced_logits, output.enhanced_edges, present=present
            )
        total = task + _sum(weight * terms[name] for name, weight in weights.items())
        entropies = [edge_entropy(e) for e in (output.common_edges, output.enhanced_edges)]
        if self.entropy_weight:
            count = present.sum(dim=1)
            most = (count * (count - 1)).clamp(min=1).log()
            total = total + self.entropy_weight * _sum((most - e).mean() for e in entropies)
        return LossTerms(
            total=total,
            task=task,
            common_entropy=entropies[0].mean(),
            enhanced_entropy=entropies[1].mean(),
            **terms,
        )

    def _common_discrepancy(self, output: TDMEROutput) -> Tensor:
        steps = self.samples == "steps"
        return pairwise_cmd_loss(
            output.common if steps else _by_modality(output, output.common_pooled),
            n_moments=self.n_moments,
            span=self.span,
            masks=output.masks if steps else _by_modality(output, output.present),
        )

    def _similarity_to_common(self, output: TDMEROutput, features: dict[str, Tensor]) -> Tensor:
        return _sum(
            orthogonal_loss(output.common[m], features[m], mask=mask, penalty=self.penalty)
            for m, mask in output.masks.items()
        )

    def _similarity_between(self, output: TDMEROutput) -> Tensor:
        present = _by_modality(output, output.present)
        pooled = {m: masked_mean(output.private[m], mask) for m, mask in output.masks.items()}
        return _sum(
            orthogonal_loss(
                pooled[p], pooled[q], mask=present[p] & present[q], penalty=self.penalty
            )
            for p, q in combinations(pooled, 2)
        )


def _by_modality(output: TDMEROutput, stacked: Tensor) -> dict[str, Tensor]:
    return dict(zip(output.masks, stacked.unbind(1), strict=True))


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
