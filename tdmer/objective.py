"""The objective of TDMER (Eqs. 3, 12-14)."""

from collections.abc import Callable, Collection, Iterator
from itertools import combinations
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tdmer._checks import check_choice, check_count, check_real
from tdmer.fusion.tcp import tcp_loss
from tdmer.losses._moments import all_reduce
from tdmer.losses.cmd import pairwise_cmd_loss
from tdmer.losses.cross_modal import cross_modal_loss, edge_entropy
from tdmer.losses.orthogonal import orthogonal_loss
from tdmer.losses.reconstruction import reconstruction_loss
from tdmer.masks import unless_full
from tdmer.model import COMMON, TDMEROutput

TERMS = ("con", "rec", "cp", "pp", "en", "f", "own", "dc", "dp")

# A term's name, a mean over samples or steps that belongs to it or several, and over how many.
Mean = tuple[str, Tensor, Tensor | int]


@runtime_checkable
class Task(Protocol):
    """What the objective asks of a task. Those of :mod:`tdmer.tasks` have it, and so may yours.

    It is called with the whole batch for the prediction, and once more for all branches and private
    features, with every sample as often as there are of them.

    Example:
        >>> from tdmer.tasks import Classification
        >>> isinstance(Classification(2), Task)
        True
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Supervised loss of every sample, shape ``(b,)``."""

    def labelled(self, labels: Tensor) -> Tensor:
        """Whether a sample has a label, shape ``(b,)``."""

    def true_class_probability(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Probability that the logits give to the truth, shape ``(b,)``."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of every class or label, shape of the logits."""


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
    own: Tensor
    """The same for every private feature alone, before the cross-modal attention."""
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

    ``alpha con + rec_weight rec + beta (cp + pp) + gamma en + delta (f + own) + task +
    epsilon (dc + dp)``.
    Every term is a mean over the batch; a term that needs two modalities is 0 where a batch has
    fewer; a term of weight 0 is not computed and reported as 0.

    In ``dc`` and ``dp`` probabilities are compared: differences of logits grow with confidence,
    beyond the loss of the task.

    Args:
        task: An object of :mod:`tdmer.tasks`, or any other :class:`Task`.
        alpha: Weight of ``con``.
        beta: Weight of ``cp`` and ``pp``.
        gamma: Weight of ``en``.
        delta: Weight of ``f`` and ``own``.
        epsilon: Weight of ``dc`` and ``dp``, 1 in the paper. Where the common features are to hold
            what the modalities share and nothing else, it takes about 10.
        without: Names of terms to leave out (``con rec cp pp en f own dc dp``), for ablations.
        rec_weight: Weight of ``rec``, in the paper ``alpha``. With 10, ``rec`` is the greatest term
            by far, takes most of a clipped gradient, and the task is learnt later.
        entropy_weight: Weight of ``log(edges) - entropy`` of the edges of ``dc`` and ``dp``, which
            keeps the edges from collapsing onto one; 0 is the paper.
        n_moments: Orders of the central moment discrepancy.
        samples: What ``con`` takes for a sample: ``"pooled"`` sequences, or single ``"steps"``,
            which are more and so give a less biased estimate.
        penalty: Elementwise function of the cosine in ``cp``, ``pp``, ``en``.
        group: Processes that each hold a part of the batch: every term is then that of the whole
            batch, the same in each. All must call, forward and backward, and each gets the
            gradient of the *sum* of their losses, which
            :class:`~torch.nn.parallel.DistributedDataParallel` then averages. Weights that only a
            term of weight 0 reads get a gradient of 0, which that class waits for.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or ``without`` names an unknown term.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eqs. 3-14.

    Example:
        >>> from tdmer import TDMER
        >>> from tdmer.tasks import Classification
        >>> task = Classification(2)
        >>> model = TDMER({"text": 4, "audio": 3}, task.num_classes)
        >>> inputs = {"text": torch.zeros(2, 5, 4), "audio": torch.zeros(2, 6, 3)}
        >>> terms = TDMERLoss(task)(model(inputs), torch.tensor([0, 1]))
        >>> terms.total.backward()
    """

    weights: dict[str, float]

    def __init__(
        self,
        task: Task,
        *,
        alpha: float = 10.0,
        beta: float = 0.1,
        gamma: float = 0.1,
        delta: float = 5.0,
        epsilon: float = 1.0,
        without: Collection[str] = (),
        rec_weight: float = 1.0,
        entropy_weight: float = 0.0,
        n_moments: int = 5,
        samples: str = "pooled",
        penalty: Callable[[Tensor], Tensor] = torch.abs,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        factors = {"alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta, "epsilon": epsilon}
        for name, value in factors.items():
            check_real(name, value)
        check_real("entropy_weight", entropy_weight)
        check_count("n_moments", n_moments)
        check_choice("samples", samples, ("pooled", "steps"))
        if isinstance(without, str):
            raise TypeError(f"without must be a collection of names, got the string {without!r}")
        for name in without:
            check_choice("without", name, TERMS)
        self.task = task
        check_real("rec_weight", rec_weight)
        weights = (alpha, rec_weight, beta, beta, gamma, delta, delta, epsilon, epsilon)
        by_term = dict(zip(TERMS, weights, strict=True))
        self.weights = {name: 0.0 if name in without else w for name, w in by_term.items()}
        self.entropy_weight = entropy_weight
        self.n_moments = n_moments
        self.samples = samples
        self.penalty = penalty
        self.group = group

    def extra_repr(self) -> str:
        """Show the options."""
        weights = ", ".join(f"{name}: {weight:g}" for name, weight in self.weights.items())
        return (
            f"weights={{{weights}}}, entropy_weight={self.entropy_weight:g}, "
            f"n_moments={self.n_moments}, samples={self.samples!r}, "
            f"penalty={getattr(self.penalty, '__name__', self.penalty)}"
        )

    def forward(self, output: TDMEROutput, labels: Tensor) -> LossTerms:
        """Compute every term.

        Args:
            output: What the model returned.
            labels: Labels as the task takes them; a sample without one counts in no supervised
                term.
        """
        masks = {m: unless_full(mask) for m, mask in output.masks.items()}
        present = unless_full(output.present)
        terms = self._summed(
            [
                *self._supervised(output, labels),
                *self._decoupling(output, masks, present),
                *self._cross_modal(output, present),
            ]
        )
        if self.weights["con"]:
            steps = self.samples == "steps"
            terms["con"] = pairwise_cmd_loss(
                [*output.common.sequences.values()] if steps else output.common.pooled.unbind(1),
                n_moments=self.n_moments,
                span=output.common.span,
                masks=[*masks.values()] if steps else _columns(present),
                group=self.group,
            )
        weighted = [weight * terms[name] for name, weight in self.weights.items()]
        total = terms["task"] + torch.stack(weighted).sum()
        if self.entropy_weight:
            total = total + self.entropy_weight * terms.pop("entropy_gap")
        if self.group is not None:
            # What a term of weight 0 does not read still takes part, with a gradient of 0.
            private = output.private
            unread = [*output.reconstructed.values(), private.logits, private.confidence]
            total = total + torch.stack([x[:0].sum() for x in unread]).sum()
        return LossTerms(total=total, **terms)

    def _supervised(self, output: TDMEROutput, labels: Tensor) -> Iterator[Mean]:
        labelled, here = self.task.labelled(labels), output.present
        count = labelled.sum()
        losses = self.task(output.logits, labels).masked_fill(~labelled, 0.0)
        yield "task", losses.sum() / count.clamp(min=1), count
        heads: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        if self.weights["f"]:
            logits, weights = (
                torch.stack([found[name] for name in output.branch_logits], dim=1)
                for found in (output.branch_logits, output.weights)
            )
            anything = here.any(dim=1, keepdim=True)
            heads["f"] = logits, weights, torch.cat([anything, here], dim=1)
        if self.weights["own"]:
            heads["own"] = output.private.logits, output.private.confidence, here
        if not heads:
            return
        # All at once: a head is a column.
        logits, weights, here = (
            torch.cat(part, dim=1) for part in zip(*heads.values(), strict=True)
        )
        rows = logits.flatten(0, 1)
        every = labels.repeat_interleave(here.shape[1], dim=0)
        losses = self.task(rows, every).view(here.shape)
        tcp = self.task.true_class_probability(rows.detach(), every).view(here.shape)
        here = here & labelled.unsqueeze(1)
        sizes = [its_logits.shape[1] for its_logits, *_ in heads.values()]
        values = tcp_loss(losses, tcp, weights.to(tcp), mask=here).split(sizes)
        counts = here.sum(dim=0).split(sizes)
        # Not `yield from`, which torch.compile does not follow on Python 3.13.
        for place, name in enumerate(heads):
            yield name, values[place], counts[place]

    def _decoupling(
        self, output: TDMEROutput, masks: dict[str, Tensor | None], present: Tensor | None
    ) -> Iterator[Mean]:
        weights, common = self.weights, output.common.sequences
        for m, mask in masks.items():
            steps = output.masks[m].sum()
            if weights["rec"]:
                value = reconstruction_loss(output.reconstructed[m], output.features[m], mask=mask)
                yield "rec", value, steps
            private, enhanced = output.private.sequences, output.enhanced.sequences
            for name, other in (("cp", private), ("en", enhanced)):
                if weights[name]:
                    value = orthogonal_loss(common[m], other[m], mask=mask, penalty=self.penalty)
                    yield name, value, steps
        if weights["pp"]:
            pooled, has = output.private.pooled.unbind(1), _columns(present)
            for p, q in combinations(range(len(pooled)), 2):
                both = None if has is None else has[p] & has[q]
                value = orthogonal_loss(pooled[p], pooled[q], mask=both, penalty=self.penalty)
                yield "pp", value, len(pooled[p]) if both is None else both.sum()

    def _cross_modal(self, output: TDMEROutput, present: Tensor | None) -> Iterator[Mean]:
        common, enhanced = output.common, output.enhanced
        samples = output.present.shape[0]
        by_branch = [x for name, x in output.branch_logits.items() if name != COMMON]
        for name, logits, edges in (
            ("dc", common.logits, common.edges),
            ("dp", torch.stack(by_branch, dim=1), enhanced.edges),
        ):
            if self.weights[name]:
                probabilities = self.task.probabilities(logits)
                yield name, cross_modal_loss(probabilities, edges, present=present), samples
        for name, edges in (("common", common.edges), ("enhanced", enhanced.edges)):
            entropy = edge_entropy(edges)
            yield f"{name}_entropy", entropy.sum() / max(samples, 1), samples
            if self.entropy_weight:
                count = output.present.sum(dim=1)
                most = (count * (count - 1)).clamp(min=1).log()
                yield "entropy_gap", (most - entropy).sum() / max(samples, 1), samples

    def _summed(self, found: list[Mean]) -> dict[str, Tensor]:
        """Sum the means of every term, each taken over the samples of all processes."""
        means = [mean.view(-1) for _, mean, _ in found]
        if self.group is not None:
            values = torch.cat(means)
            counts = [
                torch.as_tensor(n, device=values.device).expand(mean.shape)
                for mean, (*_, n) in zip(means, found, strict=True)
            ]
            counted = torch.cat(counts).to(values)
            sums, totals = all_reduce(torch.stack([values * counted, counted]), self.group)
            means = list((sums / totals.clamp(min=1)).split([len(mean) for mean in means]))
        parts: dict[str, list[Tensor]] = {}
        for (name, *_), mean in zip(found, means, strict=True):
            parts.setdefault(name, []).append(mean)
        # What was not computed is a plain 0.
        nothing = dict.fromkeys(TERMS, means[0].new_zeros(()))
        return {**nothing, **{name: torch.cat(part).sum() for name, part in parts.items()}}


def _columns(present: Tensor | None) -> tuple[Tensor, ...] | None:
    """Return, by modality, which samples have it; None where all have all."""
    return None if present is None else present.unbind(1)
