"""The model and its objective together: shapes, masks, missing modalities, degenerate input."""

import json
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from tdmer import TDMER, Classification, MultiLabel, Sentiment, TDMERLoss
from tdmer.data import collate, make_synthetic
from tdmer.losses import (
    cmd_loss,
    cross_modal_loss,
    edge_entropy,
    orthogonal_loss,
    reconstruction_loss,
)
from tdmer.model import COMMON
from tdmer.objective import TERMS
from tests.ragged import ragged, with_pads

NAN, INF = float("nan"), float("inf")
DIMS = {"text": 6, "audio": 4, "video": 3}
STEPS = {"text": 5, "audio": 9, "video": 7}


def make_model(dims=DIMS, classes=7, seed=0, **options) -> TDMER:
    torch.manual_seed(seed)
    return TDMER(dims, classes, width=8, heads=2, **options)


def make_batch(b=4, dims=DIMS, dtype=torch.float32):
    inputs, masks = {}, {}
    for number, (name, width) in enumerate(dims.items()):
        steps = STEPS.get(name, 4)
        inputs[name], masks[name] = ragged(b, steps, width, seed=number, dtype=dtype)
    labels = torch.linspace(-3, 3, b)
    return inputs, masks, labels


def pad(inputs, masks, steps, fill):
    padded = {name: with_pads(inputs[name], masks[name], steps, fill) for name in inputs}
    return {n: x for n, (x, _) in padded.items()}, {n: mask for n, (_, mask) in padded.items()}


def gradients(module):
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    assert found
    return found


def assert_finite(terms, module):
    for name, value in terms._asdict().items():
        assert value.isfinite(), name
    terms.total.backward()
    for name, gradient in gradients(module).items():
        assert gradient.isfinite().all(), name


class TestOutput:
    def test_shapes_and_order_follow_the_caller(self):
        inputs, masks, _ = make_batch()
        model = make_model()
        out = model(dict(reversed(inputs.items())), masks)
        assert out.logits.shape == (4, 7)
        assert list(out.weights) == list(out.branch_logits) == [COMMON, *DIMS]
        for name in DIMS:
            for kind in ("features", "common", "private", "reconstructed", "enhanced"):
                sequence = getattr(out, kind)[name]
                assert sequence.shape == (4, STEPS[name], 8)
                assert not sequence[~masks[name]].any()
        assert out.common_edges.shape == out.enhanced_edges.shape == (4, 3, 3)
        assert out.common_logits.shape == out.enhanced_logits.shape == (4, 3, 7)

    def test_fusion_is_over_common_and_enhanced_parts(self):
        inputs, masks, _ = make_batch()
        out = make_model().eval()(inputs, masks)
        branches = [out.common_pooled.mean(1), *out.enhanced_pooled.unbind(1)]
        fused = sum(w[:, None] * x for w, x in zip(out.weights.values(), branches, strict=True))
        torch.testing.assert_close(out.fused, fused)

    def test_the_head_of_common_is_shared(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        out = model(inputs, masks)
        head = model.fusion.heads[COMMON]
        torch.testing.assert_close(out.common_logits, head(out.common_pooled))
        torch.testing.assert_close(out.branch_logits[COMMON], head(out.common_pooled.mean(1)))
        for place, name in enumerate(DIMS):
            assert torch.equal(out.branch_logits[name], out.enhanced_logits[:, place])

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_any_number_of_modalities(self, count):
        dims = {f"sensor {n}": n + 1 for n in range(count)}
        inputs, masks, labels = make_batch(dims=dims)
        model = make_model(dims)
        terms = TDMERLoss(Sentiment())(model(inputs, masks), labels)
        assert_finite(terms, model)
        assert terms.con > 0

    def test_no_layers_leave_private_features_as_they_are(self):
        inputs, masks, _ = make_batch()
        out = make_model(layers=0)(inputs, masks)
        for name in DIMS:
            assert torch.equal(out.enhanced[name], out.private[name])

    def test_mean_fusion_weighs_present_branches_alike(self):
        inputs, masks, _ = make_batch()
        masks["audio"] = masks["audio"] & torch.tensor([True, False, True, True])[:, None]
        out = make_model(fusion="mean").eval()(inputs, masks)
        assert out.weights["text"].tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 4, 1 / 4])
        assert out.weights["audio"].tolist() == [1 / 4, 0.0, 1 / 4, 1 / 4]

    def test_tanh_features_are_signed(self):
        inputs, masks, _ = make_batch()
        out = make_model(activation="tanh")(inputs, masks)
        assert out.common["text"].min() < 0

    def test_evaluation_is_deterministic_and_training_is_under_a_seed(self):
        inputs, masks, labels = make_batch()

        def step():
            model = make_model()
            terms = TDMERLoss(Sentiment())(model(inputs, masks), labels)
            terms.total.backward()
            return [terms.total.detach(), *gradients(model).values()]

        for one, two in zip(step(), step(), strict=True):
            assert torch.equal(one, two)
        model = make_model().eval()
        assert torch.equal(model(inputs, masks).logits, model(inputs, masks).logits)


class TestMasks:
    @pytest.mark.parametrize("samples", ["pooled", "steps"])
    @pytest.mark.parametrize("fill", [NAN, INF, 1e30])
    def test_pads_change_no_output_loss_or_gradient(self, samples, fill):
        inputs, masks, labels = make_batch(dtype=torch.float64)
        model = make_model().double().eval()
        model.fit_normalization([(inputs, masks)])
        objective = TDMERLoss(Sentiment(), entropy_weight=0.1, samples=samples).double()
        results = []
        for steps, content in ((0, 0.0), (6, fill)):
            x, m = pad(inputs, masks, steps, content)
            out = model(x, m)
            terms = objective(out, labels.double())
            terms.total.backward()
            kept = [
                sequence[:, : STEPS[name]]
                for kind in (out.features, out.common, out.private, out.reconstructed, out.enhanced)
                for name, sequence in kind.items()
            ]
            results.append(
                [*out[:2], *out.weights.values(), *kept, *terms, *gradients(model).values()]
            )
        difference = max((one - two).abs().max().item() for one, two in zip(*results, strict=True))
        assert difference < 1e-6

    def test_a_sample_does_not_see_its_batch(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        whole = model(inputs, masks).logits
        for row in range(4):
            alone = model(
                {n: x[row : row + 1, : masks[n][row].sum()] for n, x in inputs.items()}
            ).logits
            torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-5)

    def test_without_masks_every_step_is_real(self):
        inputs, masks, _ = make_batch()
        inputs = {n: torch.nan_to_num(x) for n, x in inputs.items()}
        model = make_model().eval()
        real = {n: torch.ones_like(mask) for n, mask in masks.items()}
        assert torch.equal(model(inputs).logits, model(inputs, real).logits)
        some = model(inputs, {"text": masks["text"]}).logits
        assert torch.equal(some, model(inputs, real | {"text": masks["text"]}).logits)


class TestMissing:
    def test_left_out_masked_and_empty_are_the_same(self):
        inputs, masks, labels = make_batch()
        model = make_model().eval()
        rest = {n: x for n, x in inputs.items() if n != "audio"}
        rest_masks = {n: x for n, x in masks.items() if n != "audio"}
        hidden = torch.zeros_like(masks["audio"])
        outputs = [
            model(rest, rest_masks),
            model(inputs, masks | {"audio": hidden}),
            model(rest | {"audio": inputs["audio"][:, :0]}, rest_masks),
        ]
        losses = [TDMERLoss(Sentiment())(out, labels).total for out in outputs]
        for out, loss in zip(outputs, losses, strict=True):
            torch.testing.assert_close(out.logits, outputs[0].logits)
            torch.testing.assert_close(loss, losses[0])
            assert not out.weights["audio"].any()
            assert not out.common_edges[:, 1].any()
            assert not out.common_edges[:, :, 1].any()

    def test_common_is_the_mean_of_the_present(self):
        inputs, masks, _ = make_batch()
        masks["audio"] = torch.zeros_like(masks["audio"])
        model = make_model().eval()
        out = model(inputs, masks)
        branch = (out.common_pooled[:, 0] + out.common_pooled[:, 2]) / 2
        torch.testing.assert_close(out.branch_logits[COMMON], model.fusion.heads[COMMON](branch))

    @pytest.mark.parametrize("kept", [["text"], ["audio", "video"], []])
    def test_losses_and_gradients_stay_finite(self, kept):
        inputs, masks, labels = make_batch()
        masks = {n: mask & torch.tensor(n in kept) for n, mask in masks.items()}
        model = make_model()
        terms = TDMERLoss(Sentiment(), entropy_weight=1.0)(model(inputs, masks), labels)
        if len(kept) < 2:
            for name in ("con", "pp", "dc", "dp"):
                assert getattr(terms, name).item() == 0.0
        assert_finite(terms, model)

    def test_no_label_at_all_leaves_the_unsupervised_terms(self):
        inputs, masks, _ = make_batch()
        model = make_model()
        terms = TDMERLoss(Sentiment())(model(inputs, masks), torch.full((4,), NAN))
        assert terms.task.item() == terms.f.item() == 0.0
        assert terms.rec > 0
        assert_finite(terms, model)

    def test_unlabelled_samples_do_not_dilute_the_task(self):
        inputs, masks, labels = make_batch()
        model = make_model().eval()
        out = model(inputs, masks)
        some = labels.clone()
        some[1:] = NAN
        expected = Sentiment()(out.logits[:1], labels[:1]).mean()
        torch.testing.assert_close(TDMERLoss(Sentiment())(out, some).task, expected)


class TestDegenerate:
    @pytest.mark.parametrize("steps", [1, 3])
    def test_batch_of_one(self, steps):
        model = make_model()
        inputs = {n: torch.randn(1, steps, width) for n, width in DIMS.items()}
        terms = TDMERLoss(Sentiment())(model(inputs), torch.tensor([0.5]))
        assert_finite(terms, model)

    @pytest.mark.parametrize("value", [0.0, 1.0, 1e6, NAN, INF])
    def test_equal_inputs_saturation_and_damage(self, value):
        model = make_model()
        inputs = {n: torch.full((3, 4, width), value) for n, width in DIMS.items()}
        terms = TDMERLoss(Sentiment())(model(inputs), torch.tensor([0.0, 3.0, -3.0]))
        assert_finite(terms, model)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast(self, dtype):
        inputs, masks, labels = make_batch()
        model = make_model().eval()
        exact = model(inputs, masks)
        with torch.autocast("cpu", dtype=dtype):
            out = model(inputs, masks)
            terms = TDMERLoss(Sentiment())(out, labels)
        assert out.common_edges.dtype == terms.con.dtype == terms.total.dtype == torch.float32
        torch.testing.assert_close(out.logits.float(), exact.logits, atol=0.05, rtol=0.05)
        assert_finite(terms, model)

    def test_raw_float64_features_are_taken(self):
        inputs, masks, _ = make_batch(dtype=torch.float64)
        model = make_model().eval()
        single = {n: x.float() for n, x in inputs.items()}
        assert torch.equal(model(inputs, masks).logits, model(single, masks).logits)


class TestObjective:
    def test_every_term_is_its_equation(self):
        inputs, masks, labels = make_batch()
        model = make_model().eval()
        out = model(inputs, masks)
        task = Sentiment()
        terms = TDMERLoss(task)(out, labels)
        pooled = dict(zip(DIMS, out.common_pooled.unbind(1), strict=True))
        private = {n: torch.stack([p[i, masks[n][i]].mean(0) for i in range(4)])
                   for n, p in out.private.items()}  # fmt: skip
        pairs = list(combinations(DIMS, 2))
        expected = {
            "task": task(out.logits, labels).mean(),
            "con": sum(cmd_loss(pooled[p], pooled[q]) for p, q in pairs),
            "rec": sum(
                reconstruction_loss(out.reconstructed[n], out.features[n], mask=masks[n])
                for n in DIMS
            ),
            "cp": sum(orthogonal_loss(out.common[n], out.private[n], mask=masks[n]) for n in DIMS),
            "pp": sum(orthogonal_loss(private[p], private[q]) for p, q in pairs),
            "en": sum(orthogonal_loss(out.common[n], out.enhanced[n], mask=masks[n]) for n in DIMS),
            "f": sum(
                task(out.branch_logits[n], labels).mean()
                + F.mse_loss(
                    out.weights[n], task.true_class_probability(out.branch_logits[n], labels)
                )
                for n in out.weights
            ),
            "dc": cross_modal_loss(out.common_logits, out.common_edges),
            "dp": cross_modal_loss(out.enhanced_logits, out.enhanced_edges),
            "common_entropy": edge_entropy(out.common_edges).mean(),
            "enhanced_entropy": edge_entropy(out.enhanced_edges).mean(),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(terms, name), value, msg=name)

    def test_private_parts_are_compared_where_both_are_present(self):
        inputs, masks, labels = make_batch(dims={"text": 6, "audio": 4})
        masks["audio"][1:] = False
        out = make_model({"text": 6, "audio": 4}).eval()(inputs, masks)
        text, audio = (out.private[n][0, masks[n][0]].mean(0) for n in masks)
        terms = TDMERLoss(Sentiment())(out, labels)
        torch.testing.assert_close(terms.pp, F.cosine_similarity(text, audio, dim=0))

    def test_the_total_is_equation_14(self):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        t = TDMERLoss(Sentiment(), alpha=0.3, beta=0.5, gamma=0.7, delta=0.9)(out, labels)
        expected = (
            0.3 * (t.con + t.rec) + 0.5 * (t.cp + t.pp) + 0.7 * t.en + 0.9 * t.f
            + t.task + t.dc + t.dp
        )  # fmt: skip
        torch.testing.assert_close(t.total, expected)

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
        broken = out._replace(features=None, reconstructed=None, enhanced=None)
        terms = TDMERLoss(Sentiment(), alpha=0.0, gamma=0.0)(broken, labels)
        assert terms.rec.item() == terms.en.item() == 0.0

    def test_the_entropy_weight_keeps_edges_apart(self):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        plain, kept = (TDMERLoss(Sentiment(), entropy_weight=w)(out, labels) for w in (0.0, 2.0))
        most = torch.tensor(6.0).log()
        gap = (most - plain.common_entropy) + (most - plain.enhanced_entropy)
        torch.testing.assert_close(kept.total, plain.total + 2.0 * gap)

    def test_steps_as_samples(self):
        inputs, masks, labels = make_batch()
        out = make_model().eval()(inputs, masks)
        terms = TDMERLoss(Sentiment(), samples="steps")(out, labels)
        real = {n: x[masks[n]] for n, x in out.common.items()}
        expected = sum(cmd_loss(real[p], real[q]) for p, q in combinations(DIMS, 2))
        torch.testing.assert_close(terms.con, expected)

    @pytest.mark.parametrize(
        ("task", "labels"),
        [
            (Classification(), torch.tensor([0, 1, 2, -100])),
            (MultiLabel(), torch.tensor([[0.0, 1, NAN], [1, 1, 1], [0, 0, 0], [NAN] * 3])),
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
            ({"without": "con"}, TypeError, "without must be a collection of names"),
            ({"without": ["kl"]}, ValueError, "without must be one of .*, got 'kl'"),
            ({"samples": "rows"}, ValueError, "samples must be one of"),
            ({"span": 0.0}, ValueError, "span must be finite and above 0"),
            ({"n_moments": 0}, ValueError, "n_moments must be at least 1"),
            ({"entropy_weight": -1.0}, ValueError, "entropy_weight must be in"),
        ],
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            TDMERLoss(Sentiment(), **options)


class TestTraining:
    def test_every_parameter_learns_and_the_loss_falls(self):
        world = make_synthetic({"train": 32}, dims=DIMS, noise=0.1)["train"]
        batch = collate([world.dataset[i] for i in range(32)])
        model, objective = make_model(dropout=0.0, input_dropout=0.0), TDMERLoss(Sentiment())
        model.fit_normalization([batch])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        history = []
        for _ in range(150):
            terms = objective(model(batch.inputs, batch.masks), batch.labels)
            optimizer.zero_grad()
            terms.total.backward()
            if not history:
                silent = [n for n, p in model.named_parameters() if not p.grad.any()]
                assert silent == []
            optimizer.step()
            history.append(terms.task.item())
        assert history[-1] < 0.5 * history[0]

    def test_state_and_arguments_are_all_a_saved_model_needs(self):
        inputs, masks, _ = make_batch()
        inputs["text"][0, 0, 0] = NAN
        options = {"kernel_size": {"text": 1, "audio": 3, "video": 5}, "layers": 2}
        model = make_model(**options).eval()
        assert model.fit_normalization([(inputs, masks)]) == {"text": 1, "audio": 0, "video": 0}
        again = make_model(seed=1, **json.loads(json.dumps(options))).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(model(inputs, masks).logits, again(inputs, masks).logits)


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("dims", "options", "error", "message"),
        [
            ({"text": 3}, {}, ValueError, "dims must hold at least 2 different names"),
            ({"text": 3, "common": 3}, {}, ValueError, "dims must not name a modality 'common'"),
            ({"text": 3, "a.b": 3}, {}, ValueError, "hold a dot"),
            ({"text": 3, "audio": 0}, {}, ValueError, "features must be at least 1, got 0"),
            (DIMS, {"heads": 3}, ValueError, "width must be a multiple of heads"),
            (DIMS, {"layers": -1}, ValueError, "layers must be at least 0, got -1"),
            (DIMS, {"activation": "relu"}, ValueError, "activation must be one of"),
            (DIMS, {"fusion": "sum"}, ValueError, "fusion must be one of"),
            (DIMS, {"dropout": 1.5}, ValueError, r"dropout must be in \[0.0, 1.0\)"),
            (DIMS, {"kernel_size": {"text": 3}}, ValueError, "kernel_size must have an entry for"),
        ],
    )
    def test_construction(self, dims, options, error, message):
        with pytest.raises(error, match=message):
            TDMER(dims, 7, **{"width": 8, "heads": 2, **options})

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"smell": torch.zeros(4, 5, 2)}, ValueError, r"inputs must be of .*got \['smell'\]"),
            ({"text": torch.zeros(4, 5, 7)}, ValueError, r"inputs\['text'\] must have 6 features"),
            ({"text": torch.zeros(4, 6)}, ValueError, r"inputs\['text'\] must have 3 axes"),
            ({"text": torch.zeros(3, 5, 6)}, ValueError, "inputs must have one batch size"),
            ({"text": torch.zeros(4, 5, 6).int()}, TypeError, "must be floating point"),
        ],
    )
    def test_inputs(self, change, error, message):
        inputs, _, _ = make_batch()
        with pytest.raises(error, match=message):
            make_model()(inputs | change)

    def test_an_iterator_of_batches(self):
        inputs, masks, _ = make_batch()
        with pytest.raises(TypeError, match="batches must be a list or a loader"):
            make_model().fit_normalization(iter([(inputs, masks)]))

    def test_masks(self):
        inputs, masks, _ = make_batch()
        with pytest.raises(TypeError, match="must be a bool tensor"):
            make_model()(inputs, {"text": masks["text"].float()})
        with pytest.raises(ValueError, match=r"masks must be of .*got \['smell'\]"):
            make_model()(inputs, {"smell": masks["text"]})
        with pytest.raises(ValueError, match="inputs must hold one of"):
            make_model()({})


@pytest.mark.usefixtures("unchecked")
def test_compiles_to_one_graph():
    inputs, masks, labels = make_batch()
    model, objective = make_model().eval(), TDMERLoss(Sentiment())

    def whole(inputs, masks, labels):
        out = model(inputs, masks)
        return out.logits, objective(out, labels).total

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    for one, two in zip(compiled(inputs, masks, labels), whole(inputs, masks, labels), strict=True):
        torch.testing.assert_close(one, two)
