"""The objective: every term is its equation, over one process or several."""

import multiprocessing
from itertools import combinations

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tdmer import TDMER, Classification, MultiLabel, Sentiment, TDMERLoss
from tdmer.losses import (
    cmd_loss,
    cross_modal_loss,
    edge_entropy,
    orthogonal_loss,
    reconstruction_loss,
)
from tdmer.objective import TERMS
from tests.batches import DIMS, assert_finite, make_batch, make_model

NAN = float("nan")


class TestObjective:
    def test_every_term_is_its_equation(self):
        inputs, masks, labels = make_batch()
        model = make_model().eval()
        out = model(inputs, masks)
        task = Sentiment()
        terms = TDMERLoss(task)(out, labels)
        pooled = dict(zip(DIMS, out.common.pooled.unbind(1), strict=True))
        steps = out.private.sequences
        private = {
            n: torch.stack([p[i, masks[n][i]].mean(0) for i in range(4)]) for n, p in steps.items()
        }
        common, enhanced = out.common.sequences, out.enhanced.sequences
        enhanced_logits = torch.stack([out.branch_logits[n] for n in DIMS], dim=1)
        pairs = list(combinations(DIMS, 2))

        def branch(logits, weight):
            tcp = task.true_class_probability(logits, labels)
            return task(logits, labels).mean() + F.mse_loss(weight, tcp)

        expected = {
            "task": task(out.logits, labels).mean(),
            "con": sum(cmd_loss(pooled[p], pooled[q], span=2.0) for p, q in pairs),
            "rec": sum(
                reconstruction_loss(out.reconstructed[n], out.features[n], mask=masks[n])
                for n in DIMS
            ),
            "cp": sum(orthogonal_loss(common[n], steps[n], mask=masks[n]) for n in DIMS),
            "pp": sum(orthogonal_loss(private[p], private[q]) for p, q in pairs),
            "en": sum(orthogonal_loss(common[n], enhanced[n], mask=masks[n]) for n in DIMS),
            "f": sum(branch(out.branch_logits[n], out.weights[n]) for n in out.weights),
            "own": sum(
                branch(out.private.logits[:, m], out.private.confidence[:, m]) for m in range(3)
            ),
            "dc": cross_modal_loss(out.common.logits.softmax(-1), out.common.edges),
            "dp": cross_modal_loss(enhanced_logits.softmax(-1), out.enhanced.edges),
            "common_entropy": edge_entropy(out.common.edges).mean(),
            "enhanced_entropy": edge_entropy(out.enhanced.edges).mean(),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(terms, name), value, msg=name)

    def test_private_parts_are_compared_where_both_are_present(self):
        inputs, masks, labels = make_batch(dims={"text": 6, "audio": 4})
        masks["audio"][1:] = False
        out = make_model({"text": 6, "audio": 4}).eval()(inputs, masks)
        text, audio = (out.private.sequences[n][0, masks[n][0]].mean(0) for n in masks)
        terms = TDMERLoss(Sentiment())(out, labels)
        torch.testing.assert_close(terms.pp, F.cosine_similarity(text, audio, dim=0).abs())

    def test_the_total_is_equation_14(self):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        weights = {"alpha": 0.3, "beta": 0.5, "gamma": 0.7, "delta": 0.9, "epsilon": 1.1}
        t = TDMERLoss(Sentiment(), **weights, rec_weight=0.3)(out, labels)
        expected = (
            0.3 * (t.con + t.rec) + 0.5 * (t.cp + t.pp) + 0.7 * t.en + 0.9 * (t.f + t.own)
            + t.task + 1.1 * (t.dc + t.dp)
        )  # fmt: skip
        torch.testing.assert_close(t.total, expected)
        alone = TDMERLoss(Sentiment(), **weights, rec_weight=2.0)(out, labels)
        torch.testing.assert_close(alone.total, expected + 1.7 * t.rec)

    def test_the_weights_by_default(self):
        assert TDMERLoss(Sentiment()).weights == {
            "con": 10.0, "rec": 1.0, "cp": 0.1, "pp": 0.1, "en": 0.1, "f": 5.0, "own": 5.0,
            "dc": 1.0, "dp": 1.0,
        }  # fmt: skip

    def test_probabilities_are_those_of_the_task(self):
        inputs, masks, _ = make_batch()
        labels = torch.tensor([[0.0, 1, NAN], [1, 1, 1], [0, 0, 0], [NAN] * 3])
        out = make_model(classes=3).eval()(inputs, masks)
        terms = TDMERLoss(MultiLabel(3))(out, labels)
        by_branch = torch.stack([out.branch_logits[n] for n in DIMS], dim=1)
        for found, logits, edges in (
            (terms.dc, out.common.logits, out.common.edges),
            (terms.dp, by_branch, out.enhanced.edges),
        ):
            torch.testing.assert_close(found, cross_modal_loss(logits.sigmoid(), edges))

    @pytest.mark.parametrize("name", ["dc", "dp"])
    def test_cross_modal_learning_is_bounded_however_sure_the_logits(self, name):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        sure = out._replace(
            common=out.common._replace(logits=1e4 * out.common.logits),
            branch_logits={n: 1e4 * x for n, x in out.branch_logits.items()},
        )
        assert getattr(TDMERLoss(Sentiment())(sure, labels), name).item() <= 2.0

    @pytest.mark.parametrize("name", TERMS)
    def test_a_term_can_be_left_out(self, name):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        whole, part = (
            TDMERLoss(Sentiment(), without=without)(out, labels) for without in ((), (name,))
        )
        weight = TDMERLoss(Sentiment()).weights[name]
        assert getattr(part, name).item() == 0.0
        assert getattr(whole, name).item() > 0.0
        torch.testing.assert_close(part.total, whole.total - weight * getattr(whole, name))

    def test_a_term_of_weight_zero_is_not_computed(self):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        broken = out._replace(
            features=None,
            reconstructed=None,
            enhanced=out.enhanced._replace(sequences=None),
            private=out.private._replace(logits=None, confidence=None),
        )
        off = {"rec_weight": 0.0, "gamma": 0.0, "delta": 0.0}
        terms = TDMERLoss(Sentiment(), **off)(broken, labels)
        assert terms.rec.item() == terms.en.item() == terms.own.item() == 0.0

    def test_the_entropy_weight_keeps_edges_apart(self):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        plain, kept = (TDMERLoss(Sentiment(), entropy_weight=w)(out, labels) for w in (0.0, 2.0))
        most = torch.tensor(6.0).log()
        gap = (most - plain.common_entropy) + (most - plain.enhanced_entropy)
        torch.testing.assert_close(kept.total, plain.total + 2.0 * gap)

    @pytest.mark.parametrize(("activation", "span"), [("sigmoid", 1.0), ("tanh", 2.0)])
    def test_the_span_is_that_of_the_model(self, activation, span):
        inputs, masks, labels = make_batch()
        out = make_model(activation=activation).eval()(inputs, masks)
        pooled = dict(zip(DIMS, out.common.pooled.unbind(1), strict=True))
        expected = sum(cmd_loss(pooled[p], pooled[q], span=span) for p, q in combinations(DIMS, 2))
        torch.testing.assert_close(TDMERLoss(Sentiment())(out, labels).con, expected)

    def test_a_branch_counts_where_a_sample_has_it_and_a_label(self):
        inputs, masks, labels = make_batch()
        masks["audio"][1] = False
        labels[3] = NAN
        out = make_model().eval()(inputs, masks)
        task = Sentiment()
        terms = TDMERLoss(task)(out, labels)
        own = out.private
        for found, branches in (
            (terms.f, {n: (x, out.weights[n]) for n, x in out.branch_logits.items()}),
            (terms.own, {n: (own.logits[:, i], own.confidence[:, i]) for i, n in enumerate(DIMS)}),
        ):
            expected = 0.0
            for name, (logits, weight) in branches.items():
                rows = [0, 2] if name == "audio" else [0, 1, 2]
                tcp = task.true_class_probability(logits[rows], labels[rows])
                expected += task(logits[rows], labels[rows]).mean()
                expected += F.mse_loss(weight[rows], tcp)
            torch.testing.assert_close(found, expected)

    def test_a_task_sees_the_whole_batch_of_every_branch(self):
        class Balanced(Classification):
            """Cross-entropy in which every class of the batch weighs the same."""

            def forward(self, logits, labels):
                counts = labels.bincount(minlength=logits.shape[1])
                shares = 1.0 / counts[labels] / (counts > 0).sum()
                return len(labels) * shares * super().forward(logits, labels)

        inputs, masks, _ = make_batch()
        labels = torch.tensor([0, 0, 0, 1])
        out = make_model(classes=2).eval()(inputs, masks)
        terms = TDMERLoss(Balanced(2))(out, labels)

        def balanced(logits):
            # scikit-learn's definition of class_weight="balanced".
            weight = torch.tensor([4 / (2 * 3), 4 / (2 * 1)])
            return F.cross_entropy(logits, labels, weight=weight)

        torch.testing.assert_close(terms.task, balanced(out.logits))

        def branch(logits, weight):
            return balanced(logits) + F.mse_loss(weight, logits.softmax(1)[range(4), labels])

        branches = sum(branch(logits, out.weights[n]) for n, logits in out.branch_logits.items())
        torch.testing.assert_close(terms.f, branches)
        own = zip(out.private.logits.unbind(1), out.private.confidence.unbind(1), strict=True)
        torch.testing.assert_close(terms.own, sum(branch(*found) for found in own))

    def test_own_teaches_the_heads_of_the_private_features_only(self):
        inputs, masks, labels = make_batch()
        model = make_model().eval()
        terms = TDMERLoss(Sentiment())(model(inputs, masks), labels)
        terms.own.backward()
        heads = ("private_classifiers.", "private_confidence.")
        taught = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert taught == {n for n, _ in model.named_parameters() if n.startswith(heads)}

    def test_steps_as_samples(self):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        terms = TDMERLoss(Sentiment(), samples="steps")(out, labels)
        real = {n: x[masks[n]] for n, x in out.common.sequences.items()}
        expected = sum(cmd_loss(real[p], real[q], span=2.0) for p, q in combinations(DIMS, 2))
        torch.testing.assert_close(terms.con, expected)

    @pytest.mark.parametrize(
        ("task", "labels"),
        [
            (Classification(3), torch.tensor([0, 1, 2, -100])),
            (MultiLabel(3), torch.tensor([[0.0, 1, NAN], [1, 1, 1], [0, 0, 0], [NAN] * 3])),
            (Sentiment(values=(-1, 0, 1)), torch.tensor([0.1, -1.0, NAN, 0.7])),
        ],
    )
    def test_every_task(self, task, labels):
        inputs, masks, _ = make_batch()
        model = make_model(classes=3)
        assert_finite(TDMERLoss(task)(model(inputs, masks), labels), model)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"alpha": -1.0}, ValueError, r"alpha must be in \[0.0, inf\), got -1.0"),
            ({"gamma": "1"}, TypeError, "gamma must be a number, got str"),
            ({"rec_weight": -1.0}, ValueError, r"rec_weight must be in \[0.0, inf\), got -1.0"),
            ({"epsilon": -0.5}, ValueError, r"epsilon must be in \[0.0, inf\), got -0.5"),
            ({"without": "con"}, TypeError, "without must be a collection of names"),
            ({"without": ["kl"]}, ValueError, "without must be one of .*, got 'kl'"),
            ({"samples": "rows"}, ValueError, "samples must be one of"),
            ({"n_moments": 0}, ValueError, "n_moments must be at least 1"),
            ({"entropy_weight": -1.0}, ValueError, "entropy_weight must be in"),
        ],
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            TDMERLoss(Sentiment(), **options)


# Rows of every rank: without a modality, without a label, and without a row at all.
SHARES = {2: (3, 5), 3: (2, 6, 0)}


def whole_batch(dtype):
    inputs, masks, labels = make_batch(b=8, dtype=dtype)
    masks["audio"][:3] = False
    labels[:3] = NAN
    return inputs, masks, labels.to(dtype)


def results(model, rows, group):
    """Terms and gradient of a share of the rows."""
    inputs, masks, labels = whole_batch(torch.float64)
    objective = TDMERLoss(Sentiment(), entropy_weight=0.5, group=group)
    part = [{name: x[rows] for name, x in kind.items()} for kind in (inputs, masks)]
    terms = objective(model(*part), labels[rows])
    terms.total.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return {name: value.detach() for name, value in terms._asdict().items()} | {"grad": gradient}


def work(rank, size, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    start = sum(SHARES[size][:rank])
    model = DistributedDataParallel(make_model().double().eval())
    rows = slice(start, start + SHARES[size][rank])
    torch.save(results(model, rows, dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("size", SHARES)
def test_ranks_with_uneven_shares_equal_one_process(size, tmp_path):
    multiprocessing.set_forkserver_preload([__name__])
    start_processes(work, (size, str(tmp_path)), nprocs=size, start_method="forkserver")
    expected = results(make_model().double().eval(), slice(None), None)
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-9, msg=name)


OFF = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "delta": 0.0, "epsilon": 0.0}


def gradients(model, batch, options, group):
    """Gradients of two steps, 0 where there is none, so that a rank that waits in vain is seen."""
    inputs, masks, labels = batch
    objective = TDMERLoss(Sentiment(), **options, group=group)
    for _ in range(2):
        objective(model(inputs, masks), labels).total.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in found])


def switched_off():
    """A batch, a model and options of the objective: in each case weights are left unread."""
    inputs, masks, labels = make_batch(dtype=torch.float64)
    yield "all terms", (inputs, masks, labels), make_model(), OFF
    yield "layers", (inputs, masks, labels), make_model(layers=0, fusion="mean"), {}
    yield "modalities", ({"text": inputs["text"]}, {}, labels), make_model(), {}
    alone = TDMER({"text": DIMS["text"]}, 7, width=8, heads=2)
    yield "one modality", ({"text": inputs["text"]}, {}, labels), alone, {}


def work_switched_off(rank, size, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    found = {}
    for name, batch, model, options in switched_off():
        parallel = DistributedDataParallel(model.double().eval())
        found[name] = gradients(parallel, batch, options, dist.group.WORLD)
        del parallel
    # With means of its own, each process has to look for what is left unread.
    _, batch, model, options = next(switched_off())
    model.double().eval()
    found["found"] = gradients(
        DistributedDataParallel(model, find_unused_parameters=True), batch, options, None
    )
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        gradients(DistributedDataParallel(model), batch, options, None)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_wait_for_no_weight_that_is_switched_off(tmp_path):
    multiprocessing.set_forkserver_preload([__name__])
    start_processes(work_switched_off, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    expected = {
        name: gradients(model.double().eval(), batch, options, None)
        for name, batch, model, options in switched_off()
    }
    # Both ranks have the same rows, whose mean is that of one.
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found.pop("found"), expected["all terms"])
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=name)
