"""The model and its objective together: shapes, masks, missing modalities, degenerate input."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from tdmer import TDMER, Sentiment, TDMERLoss
from tdmer.data import Sample, collate, make_synthetic
from tdmer.masks import masked_mean
from tdmer.model import COMMON
from tests import oracles
from tests.batches import (
    DIMS,
    STEPS,
    assert_finite,
    gradients,
    make_batch,
    make_model,
    pad,
    sequences,
)

NAN, INF = float("nan"), float("inf")
SAMPLE = Sample({"text": torch.zeros(2, 6)}, torch.tensor(0), "one")


def layer_norm(x: Tensor) -> Tensor:
    return torch.from_numpy(oracles.layer_norm(x.detach().numpy())).to(x.dtype)


def nested(width: int) -> Tensor:
    parts = [torch.ones(steps, width) for steps in (2, 3)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


class TestOutput:
    def test_shapes_and_order_follow_the_caller(self):
        inputs, masks, _ = make_batch()
        model = make_model()
        out = model(dict(reversed(inputs.items())), masks)
        assert out.logits.shape == (4, 7)
        assert list(out.weights) == list(out.branch_logits) == [COMMON, *DIMS]
        for name in DIMS:
            for kind in sequences(out):
                sequence = kind[name]
                assert sequence.shape == (4, STEPS[name], 8)
                assert not sequence[~masks[name]].any()
        assert out.common.edges.shape == out.enhanced.edges.shape == (4, 3, 3)
        assert out.common.logits.shape == out.private.logits.shape == (4, 3, 7)
        assert out.private.confidence.shape == out.present.shape == (4, 3)
        for part in (out.common, out.private, out.enhanced):
            assert list(part.sequences) == list(DIMS)
            for place, name in enumerate(DIMS):
                mean = masked_mean(part.sequences[name], masks[name])
                torch.testing.assert_close(part.pooled[:, place], mean)

    def test_fusion_is_over_common_and_enhanced_parts(self):
        inputs, masks, _ = make_batch()
        out = make_model().eval()(inputs, masks)
        parts = [out.common.pooled.mean(1), *out.enhanced.pooled.unbind(1)]
        assert list(out.branches) == [COMMON, *DIMS]
        for branch, part in zip(out.branches.values(), parts, strict=True):
            torch.testing.assert_close(branch, layer_norm(part))
        fused = sum(out.weights[n][:, None] * x for n, x in out.branches.items())
        torch.testing.assert_close(out.fused, fused)

    def test_every_head_reads_normalised_parts(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        out = model(inputs, masks)
        common, private, enhanced = (
            layer_norm(part.pooled) for part in (out.common, out.private, out.enhanced)
        )
        head = model.classifiers[COMMON]
        mean = layer_norm(out.common.pooled.mean(1))
        expected = {
            "common": (out.common.logits, head(common)),
            "mean": (out.branch_logits[COMMON], head(mean)),
            "common edges": (
                out.common.edges, model.common_edges(common, out.common.logits, out.present)
            ),
            "enhanced edges": (
                out.enhanced.edges,
                model.enhanced_edges(
                    enhanced, torch.stack([out.branch_logits[n] for n in DIMS], 1), out.present
                ),
            ),
        }  # fmt: skip
        by_name = sorted(DIMS)
        confidences = model.private_confidence(
            *(
                torch.stack([part[:, list(DIMS).index(name)] for name in by_name])
                for part in (private, out.private.logits)
            )
        )
        for place, name in enumerate(DIMS):
            logits = model.private_classifiers[name](private[:, place])
            confidence = confidences[by_name.index(name)]
            expected |= {
                f"private {name}": (out.private.logits[:, place], logits),
                f"confidence of {name}": (out.private.confidence[:, place], confidence),
                f"enhanced {name}": (
                    out.branch_logits[name], model.classifiers[name](enhanced[:, place])
                ),
            }  # fmt: skip
        for what, (found, value) in expected.items():
            torch.testing.assert_close(found, value, msg=what)

    @pytest.mark.parametrize("fusion", ["tcp", "mean"])
    def test_logits_are_the_mean_of_the_fused_and_the_weighed(self, fusion):
        inputs, masks, _ = make_batch(dtype=torch.float64)
        masks["audio"][1] = False
        for name in DIMS:
            masks[name][2] = False
        model = make_model(fusion=fusion).double().eval()
        out = model(inputs, masks)
        weights, logits = (
            np.stack([x.detach().numpy() for x in found.values()])
            for found in (out.weights, out.branch_logits)
        )
        weighed = np.zeros((4, 7))
        for row in (0, 1, 3):  # nothing is present in the other
            weighed[row] = np.average(logits[:, row], axis=0, weights=weights[:, row])
        expected = (model.classifier(out.fused) + torch.from_numpy(weighed)) / 2
        torch.testing.assert_close(out.logits, expected, atol=1e-12, rtol=0)

    def test_the_weighed_logits_are_held_fixed(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        out = model(inputs, masks)
        found, expected = (
            torch.autograd.grad(
                logits.square().sum(),
                list(model.parameters()),
                allow_unused=True,
                retain_graph=True,
            )
            for logits in (
                out.logits,
                (model.classifier(out.fused) - model.classifier(out.fused).detach()) / 2
                + out.logits.detach(),
            )
        )
        assert any(x is not None and x.any() for x in found)
        for one, two in zip(found, expected, strict=True):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(one, two)

    def test_feature_dropout_is_of_the_temporal_features(self):
        inputs, masks, _ = make_batch()
        options = {"dropout": 0.0, "input_dropout": 0.0}
        torch.manual_seed(1)
        out = make_model(feature_dropout=0.5, **options)(inputs, masks)
        dropped = torch.stack([~x.any(dim=1) for x in out.features.values()])
        assert 0.3 < dropped.float().mean() < 0.7
        model = make_model(feature_dropout=0.0, **options)
        assert torch.equal(model(inputs, masks).logits, model.eval()(inputs, masks).logits)

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
            assert torch.equal(out.enhanced.sequences[name], out.private.sequences[name])

    def test_mean_fusion_weighs_present_branches_alike(self):
        inputs, masks, _ = make_batch()
        masks["audio"] = masks["audio"] & torch.tensor([True, False, True, True])[:, None]
        out = make_model(fusion="mean").eval()(inputs, masks)
        assert out.weights["text"].tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 4, 1 / 4])
        assert out.weights["audio"].tolist() == [1 / 4, 0.0, 1 / 4, 1 / 4]

    def test_tanh_features_are_signed(self):
        inputs, masks, _ = make_batch()
        out = make_model(activation="tanh")(inputs, masks)
        assert out.common.sequences["text"].min() < 0
        assert out.common.span == 2.0

    def test_private_features_are_signed_whatever_the_activation(self):
        inputs, masks, _ = make_batch()
        for activation in ("sigmoid", "tanh"):
            private = make_model(activation=activation)(inputs, masks).private.pooled
            assert -1.0 <= private.min() < 0.0 < private.max() <= 1.0

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


class TestNames:
    """Weights belong to the names of the modalities; their order is the caller's affair."""

    @pytest.mark.parametrize("options", [{}, {"layers": 2, "fusion": "mean"}])
    def test_weights_load_in_every_order(self, options):
        dims = DIMS | {"pulse": 2}
        inputs, masks, labels = make_batch(dims=dims)
        first = make_model(dims, **options).eval()
        first.fit_normalization([(inputs, masks)])
        expected = first(inputs, masks)
        loss = TDMERLoss(Sentiment())(expected, labels).total
        for names in permutations(dims):
            model = make_model({n: dims[n] for n in names}, seed=1, **options).eval()
            model.load_state_dict(first.state_dict())
            out = model({n: inputs[n] for n in names}, {n: masks[n] for n in names})
            assert torch.equal(out.logits, expected.logits)
            assert list(out.weights) == [COMMON, *names]
            for place, name in enumerate(names):
                column = list(dims).index(name)
                for one, two in ((out.common, expected.common), (out.private, expected.private)):
                    assert torch.equal(one.pooled[:, place], two.pooled[:, column])
                    assert torch.equal(one.logits[:, place], two.logits[:, column])
                own = expected.private.confidence[:, column]
                assert torch.equal(out.private.confidence[:, place], own)
                assert torch.equal(out.weights[name], expected.weights[name])
            torch.testing.assert_close(TDMERLoss(Sentiment())(out, labels).total, loss)

    def test_the_seed_makes_one_model_in_every_order(self):
        states = [make_model(dims).state_dict() for dims in (DIMS, dict(reversed(DIMS.items())))]
        assert list(states[0]) == list(states[1])
        assert all(map(torch.equal, states[0].values(), states[1].values()))

    @pytest.mark.parametrize("name", ["cross_modal.text.blocks.0.attention.query.weight",
                                      "fusion.heads.text.weight"])  # fmt: skip
    @pytest.mark.parametrize("strict", [True, False])
    def test_weights_of_an_earlier_version_are_refused(self, name, strict):
        with pytest.raises(ValueError, match="state_dict must be of this version of TDMER"):
            make_model().load_state_dict({name: torch.zeros(1)}, strict=strict)

    @pytest.mark.parametrize("strict", [True, False])
    def test_weights_without_the_heads_of_private_features_are_refused(self, strict):
        # Those of the version before, with and without a Module around the model.
        state = {n: x for n, x in make_model().state_dict().items() if "private_c" not in n}
        wrapped = torch.nn.ModuleDict({"net": make_model(seed=1)})
        with pytest.raises(ValueError, match=r"earlier version, which had other parts: train"):
            make_model(seed=1).load_state_dict(state, strict=strict)
        with pytest.raises(ValueError, match=r"earlier version, which had other parts: train"):
            wrapped.load_state_dict({f"net.{n}": x for n, x in state.items()}, strict=strict)

    def test_some_weights_of_this_version_load(self):
        model, other = make_model(), torch.nn.ModuleDict({"net": make_model(seed=1)})
        part = {f"net.{n}": x for n, x in model.state_dict().items() if n.startswith("temporal.")}
        found = other.load_state_dict(part, strict=False)
        assert not found.unexpected_keys
        weights = (m.temporal["text"].conv.weight for m in (model, other["net"]))
        assert torch.equal(*weights)


class TestParts:
    def test_cross_modal_learning_reaches_the_common_features(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        out = model(inputs, masks)
        out.common.logits.square().sum().backward()
        assert model.decoupler.common_encoder[0].weight.grad.any()

    def test_attention_reads_private_features(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        found = []
        encoder = model.attention["text"]
        encoder.register_forward_pre_hook(lambda _, arguments: found.append(arguments))
        out = model(inputs, masks)
        target, sources, mask, _ = found[0]
        assert torch.equal(target, out.private.sequences["text"])
        assert set(sources) == {"audio", "video"}
        for name, source in sources.items():
            assert torch.equal(source, out.private.sequences[name])
        assert torch.equal(mask, masks["text"])

    def test_the_heads_of_private_features_only_read(self):
        inputs, masks, _ = make_batch()
        for kind, heads in (
            ("logits", ("private_classifiers.",)),
            ("confidence", ("private_confidence.",)),
        ):
            model = make_model().eval()
            getattr(model(inputs, masks).private, kind).square().sum().backward()
            moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
            assert moved == {n for n, _ in model.named_parameters() if n.startswith(heads)}

    def test_a_fusion_of_the_users_own(self):
        class LastBranch(torch.nn.Module):
            def forward(self, branches, logits, present):
                assert list(logits) == list(branches) == list(present)
                weights = {n: here.float() for n, here in present.items()}
                return branches["video"], weights

        inputs, masks, labels = make_batch()
        model = make_model()
        model.fusion = LastBranch()
        out = model(inputs, masks)
        assert torch.equal(out.fused, out.branches["video"])
        torch.testing.assert_close(out.fused, layer_norm(out.enhanced.pooled[:, 2]))
        assert_finite(TDMERLoss(Sentiment())(out, labels), model)


class TestVectors:
    def test_vectors_are_sequences_of_one_step(self):
        inputs, _, labels = make_batch()
        model, objective = make_model().eval(), TDMERLoss(Sentiment())
        x = {n: torch.nan_to_num(steps[:, 0]) for n, steps in inputs.items()}
        here = torch.tensor([True, False, True, True])
        results = []
        for masks, other in (
            (None, None),
            ({"audio": here}, {"audio": here.unsqueeze(1)}),
            ({"audio": here.unsqueeze(1), "text": None}, {"audio": here.unsqueeze(1)}),
        ):
            for given, its in ((x, masks), ({n: v.unsqueeze(1) for n, v in x.items()}, other)):
                out = model(given, its)
                results.append((out.logits, objective(out, labels).total, out.masks))
            torch.testing.assert_close(*results[-2:], rtol=0, atol=0)
        assert not torch.equal(results[0][0], results[2][0])

    def test_vectors_and_sequences_go_together(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        x = {**inputs, "video": inputs["video"][:, 0]}
        out = model(x, {"text": masks["text"]})
        expected = model({**inputs, "video": inputs["video"][:, :1]}, {"text": masks["text"]})
        assert torch.equal(out.logits, expected.logits)

    def test_the_normalisation_takes_vectors(self):
        inputs, _, _ = make_batch()
        x = {n: torch.nan_to_num(steps[:, 0]) for n, steps in inputs.items()}
        masks = {"audio": torch.tensor([True, False, True, True])}
        model, other = make_model(), make_model()
        model.fit_normalization([(x, masks)])
        steps = {n: v.unsqueeze(1) for n, v in x.items()}
        other.fit_normalization([(steps, {"audio": masks["audio"].unsqueeze(1)})])
        for n in DIMS:
            one, two = model.normalizations[n], other.normalizations[n]
            assert torch.equal(one.mean, two.mean)
            assert torch.equal(one.std, two.std)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("mask", "error", "message"),
        [
            (
                torch.ones(3) > 0,
                ValueError,
                r"masks\['text'\] must have shape \(4, 1\), got \(3, 1",
            ),
            (torch.ones(4, 2) > 0, ValueError, r"must have shape \(4, 1\), got \(4, 2\)"),
            (torch.ones(4), TypeError, r"masks\['text'\] must be a bool tensor"),
            ([True] * 4, TypeError, "must be a bool tensor, .* got list"),
        ],
    )
    def test_bad_masks(self, mask, error, message):
        with pytest.raises(error, match=message):
            make_model()({"text": torch.zeros(4, 6)}, {"text": mask})

    @pytest.mark.usefixtures("unchecked")
    def test_a_mask_of_samples_is_none_of_steps(self):
        with pytest.raises(ValueError, match=r"must have shape \(4, 5\), got \(4,\)"):
            make_model()({"text": torch.zeros(4, 5, 6)}, {"text": torch.ones(4) > 0})


class TestNormalization:
    def test_a_data_set_or_one_batch_will_do(self):
        data = make_synthetic({"train": 150}, dims=DIMS)["train"].dataset
        model, *others = (make_model() for _ in range(4))
        loader = DataLoader(data, batch_size=50, shuffle=True, collate_fn=collate)
        model.fit_normalization(loader)
        for other, given in zip(
            others, (data, Subset(data, range(150)), collate(list(data))), strict=True
        ):
            assert other.fit_normalization(given) == dict.fromkeys(DIMS, 0)
            for n in DIMS:
                one, two = model.normalizations[n], other.normalizations[n]
                torch.testing.assert_close(one.mean, two.mean)
                torch.testing.assert_close(one.std, two.std)

    def test_the_random_state_is_left_alone(self):
        data = make_synthetic({"train": 6}, dims=DIMS)["train"].dataset
        for given in (data, DataLoader(data, 2, shuffle=True, collate_fn=collate)):
            model = make_model()
            torch.manual_seed(3)
            expected = torch.rand(2)
            torch.manual_seed(3)
            model.fit_normalization(given)
            assert torch.equal(torch.rand(2), expected)

    def test_training_on_raw_features_warns_once(self):
        torch.manual_seed(0)
        x = torch.randn(8, 5, 6) + 200.0
        inputs = {"text": x, "audio": torch.randn(8, 5, 4)}
        masks = {"text": torch.ones(8, 5, dtype=torch.bool)}
        message = "features are trained on as they are, one with a root mean square of 20"
        model = make_model()
        model.eval()(inputs, masks)  # no warning: what is in use may be loaded later
        with pytest.warns(UserWarning, match=message) as found:
            model.train()(inputs, masks)
        assert len(found) == 1
        model(inputs, masks)
        fitted = make_model()
        fitted.fit_normalization([(inputs, masks), (*make_batch(b=8)[:2],)])
        fitted(inputs, masks)
        loaded = make_model()
        loaded.load_state_dict(fitted.state_dict())
        loaded(inputs, masks)
        # Pads are none of the features.
        x[:, 3:] = 1e6
        masks["text"][:, 3:] = False
        make_model()({"text": x - 200.0, "audio": inputs["audio"]}, masks)

    def test_one_pass_over_an_iterator_counts_what_is_not_finite(self):
        inputs, masks, _ = make_batch()
        inputs["audio"][0, :2, 1] = INF
        model, other = make_model(), make_model()
        assert model.fit_normalization(iter([(inputs, masks)]))["audio"] == 2
        other.normalizations["text"].fit([(inputs["text"], masks["text"])])
        for name in ("mean", "std"):
            one, two = (getattr(m.normalizations["text"], name) for m in (model, other))
            assert torch.equal(one, two)

    def test_batches_are_what_forward_takes(self):
        inputs, masks, _ = make_batch()
        clean = {n: torch.nan_to_num(x) for n, x in inputs.items()}
        text = {"text": clean["text"]}
        batches = [(clean, None), (text, {}), (text, {"text": masks["text"]})]
        assert make_model().fit_normalization(batches) == dict.fromkeys(DIMS, 0)

    @pytest.mark.usefixtures("unchecked")
    def test_what_no_sample_has_is_named(self):
        inputs, masks, _ = make_batch()
        model = make_model()
        before = {n: x.clone() for n, x in model.state_dict().items()}
        for batch in ((inputs, masks | {"audio": torch.zeros_like(masks["audio"])}),
                      ({n: x for n, x in inputs.items() if n != "audio"}, {})):  # fmt: skip
            with pytest.raises(ValueError, match=r"of every modality, got none of \['audio'\]"):
                model.fit_normalization([batch])
        assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("batches", "error", "message"),
        [
            ([{"text": torch.zeros(1, 2, 6)}], TypeError, "batches must yield tuples .* got dict"),
            ({"text": torch.zeros(1, 2, 6)}, TypeError, "batches must yield tuples .* got str"),
            ([SAMPLE], TypeError, "batches must yield tuples .* got Sample"),
            (
                [({"text": torch.zeros(1, 2, 6)},)],
                TypeError,
                "batches must yield tuples .* got tuple",
            ),
            ([torch.zeros(1)], TypeError, "batches must yield tuples .* got Tensor"),
            ([({"text": torch.zeros(1, 2, 5)}, {})], ValueError, r"inputs\['text'\] must have 6"),
            ([({"smell": torch.zeros(1, 2, 5)}, {})], ValueError, "inputs must be of"),
        ],
    )
    def test_bad_batches(self, batches, error, message):
        with pytest.raises(error, match=message):
            make_model().fit_normalization(batches)


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
                for kind in sequences(out)
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
            assert not out.branches["audio"].any()
            assert not out.private.confidence[:, 1].any()
            assert not out.common.edges[:, 1].any()
            assert not out.common.edges[:, :, 1].any()

    def test_common_is_the_mean_of_the_present(self):
        inputs, masks, _ = make_batch()
        masks["audio"] = torch.zeros_like(masks["audio"])
        model = make_model().eval()
        out = model(inputs, masks)
        branch = layer_norm((out.common.pooled[:, 0] + out.common.pooled[:, 2]) / 2)
        torch.testing.assert_close(out.branch_logits[COMMON], model.classifiers[COMMON](branch))

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
        assert terms.task.item() == terms.f.item() == terms.own.item() == 0.0
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


class TestOneModality:
    """A single one has nothing to learn from another, and serves as a baseline."""

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(
        "options", [{}, {"layers": 0}, {"layers": 2, "fusion": "mean", "activation": "tanh"}]
    )
    def test_what_needs_two_is_zero_and_all_is_finite(self, options, training):
        dims = {"audio": 4}
        inputs, masks, labels = make_batch(dims=dims)
        model = make_model(dims, **options).train(training)
        out = model(inputs, masks)
        assert out.logits.shape == (4, 7)
        assert list(out.weights) == [COMMON, "audio"]
        assert torch.equal(out.enhanced.sequences["audio"], out.private.sequences["audio"])
        assert not out.common.edges.any()
        objective = TDMERLoss(Sentiment(), entropy_weight=1.0)
        terms = objective(out, labels)
        for name in ("con", "pp", "dc", "dp", "common_entropy", "enhanced_entropy"):
            assert getattr(terms, name).item() == 0.0
        for name in ("task", "rec", "cp", "en", "f", "own"):
            assert getattr(terms, name).item() > 0.0
        expected = terms.task + sum(w * getattr(terms, n) for n, w in objective.weights.items())
        torch.testing.assert_close(terms.total, expected)
        assert_finite(terms, model)

    def test_missing_samples_and_pads(self):
        dims = {"audio": 4}
        inputs, masks, labels = make_batch(dims=dims)
        masks["audio"][1] = False
        model = make_model(dims).eval()
        out = model(inputs, masks)
        assert_finite(TDMERLoss(Sentiment())(out, labels), model)
        padded = model(*pad(inputs, masks, 3, NAN))
        torch.testing.assert_close(padded.logits, out.logits)
        assert not out.weights["audio"][1].any()

    def test_other_modalities_are_refused(self):
        inputs, masks, _ = make_batch()
        with pytest.raises(ValueError, match=r"inputs must be of \['audio'\]"):
            make_model({"audio": 4})(inputs, masks)


class TestDegenerate:
    @pytest.mark.parametrize("steps", [1, 3])
    def test_batch_of_one(self, steps):
        model = make_model()
        inputs = {n: torch.randn(1, steps, width) for n, width in DIMS.items()}
        terms = TDMERLoss(Sentiment())(model(inputs), torch.tensor([0.5]))
        assert_finite(terms, model)

    @pytest.mark.filterwarnings("ignore:features are trained on as they are:UserWarning")
    @pytest.mark.parametrize("value", [0.0, 1.0, 1e6, 1e30, NAN, INF])
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
        assert out.common.edges.dtype == terms.con.dtype == terms.total.dtype == torch.float32
        torch.testing.assert_close(out.logits.float(), exact.logits, atol=0.05, rtol=0.05)
        assert_finite(terms, model)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision_throughout(self, dtype):
        inputs, masks, labels = make_batch()
        model = make_model().eval()
        exact = model(inputs, masks)
        low = make_model().to(dtype).eval()
        out = low({n: x.to(dtype) for n, x in inputs.items()}, masks)
        assert out.logits.dtype == out.weights["text"].dtype == dtype
        torch.testing.assert_close(out.logits.float(), exact.logits, atol=0.02, rtol=0.05)
        assert_finite(TDMERLoss(Sentiment())(out, labels), low)

    def test_float64_is_exact(self):
        inputs, masks, labels = make_batch(dtype=torch.float64)
        masks["audio"][1] = False
        for options in ({}, {"fusion": "mean"}):
            model = make_model(**options).double().eval()
            out = model(inputs, masks)
            terms = TDMERLoss(Sentiment())(out, labels)
            kinds = [out.logits, *out.weights.values(), out.common.pooled, out.common.edges]
            assert {x.dtype for x in (*kinds, *terms)} == {torch.float64}
            # Thirds, which float32 holds to 3e-8 only.
            common = layer_norm(out.common.pooled[0].mean(0))
            logits = model.classifiers[COMMON](common)
            torch.testing.assert_close(out.branch_logits[COMMON][0], logits, atol=1e-14, rtol=0)
            if options:
                assert out.weights["text"][1].item() == pytest.approx(1 / 3, abs=1e-15)

    def test_raw_float64_features_are_taken(self):
        inputs, masks, _ = make_batch(dtype=torch.float64)
        model = make_model().eval()
        single = {n: x.float() for n, x in inputs.items()}
        assert torch.equal(model(inputs, masks).logits, model(single, masks).logits)


class TestTraining:
    def test_every_parameter_learns_and_the_loss_falls(self):
        world = make_synthetic({"train": 32}, dims=DIMS, noise=0.1)["train"]
        batch = collate([world.dataset[i] for i in range(32)])
        model = make_model(dropout=0.0, input_dropout=0.0, feature_dropout=0.0)
        objective = TDMERLoss(Sentiment())
        model.fit_normalization([batch])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        history = []
        for _ in range(80):
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
            ({}, {}, ValueError, r"dims must hold at least 1 different names, got \[\]"),
            ({"text": 3, "common": 3}, {}, ValueError, "dims must not name a modality 'common'"),
            ({"text": 3, "a.b": 3}, {}, ValueError, "hold a dot"),
            ({"text": 3, "audio": 0}, {}, ValueError, "features must be at least 1, got 0"),
            (DIMS, {"heads": 3}, ValueError, "width must be a multiple of heads"),
            (DIMS, {"layers": -1}, ValueError, "layers must be at least 0, got -1"),
            (DIMS, {"activation": "relu"}, ValueError, "activation must be one of"),
            (DIMS, {"fusion": "sum"}, ValueError, "fusion must be one of"),
            (DIMS, {"dropout": 1.5}, ValueError, r"dropout must be in \[0.0, 1.0\)"),
            (DIMS, {"feature_dropout": 1.0}, ValueError, r"dropout must be in \[0.0, 1.0\)"),
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
            ({"text": torch.zeros(6)}, ValueError, r"inputs\['text'\] must have 3 axes"),
            ({"text": torch.zeros(4, 7)}, ValueError, r"must have 6 features .* shape \(4, 7\)"),
            ({"text": torch.zeros(4, 1, 1, 6)}, ValueError, r"inputs\['text'\] must have 3 axes"),
            (
                {"text": nested(6)},
                TypeError,
                r"inputs\['text'\] must be padded, .* got a nested te",
            ),
            ({"text": torch.zeros(3, 5, 6)}, ValueError, "inputs must have one batch size"),
            ({"text": torch.zeros(4, 5, 6).int()}, TypeError, "must be floating point"),
        ],
    )
    def test_inputs(self, change, error, message):
        inputs, _, _ = make_batch()
        with pytest.raises(error, match=message):
            make_model()(inputs | change)

    def test_masks(self):
        inputs, masks, _ = make_batch()
        with pytest.raises(TypeError, match="must be a bool tensor"):
            make_model()(inputs, {"text": masks["text"].float()})
        with pytest.raises(ValueError, match=r"masks must be of .*got \['smell'\]"):
            make_model()(inputs, {"smell": masks["text"]})
        with pytest.raises(ValueError, match="inputs must hold one of"):
            make_model()({})


@pytest.mark.usefixtures("unchecked")
class TestOtherRuntimes:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_dynamic_int8(self):
        inputs, masks, _ = make_batch()
        model = make_model().eval()
        small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
        linear = small.attention["text"].blocks[0].attention.query["audio"]
        assert "quantized" in type(linear).__module__
        difference = small(inputs, masks).logits - model(inputs, masks).logits
        assert 0 < difference.abs().max() < 0.05

    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    def test_an_ensemble_at_once(self):
        inputs, masks, _ = make_batch()
        models = [make_model(seed=seed).eval() for seed in range(3)]
        parameters, buffers = torch.func.stack_module_state(models)

        def logits(parameters, buffers):
            state = (parameters, buffers)
            return torch.func.functional_call(models[0], state, (inputs, masks)).logits

        found = torch.vmap(logits)(parameters, buffers)
        expected = torch.stack([model(inputs, masks).logits for model in models])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
# The gradient is traced where that takes less time.
@pytest.mark.parametrize(
    ("dims", "backend"), [(DIMS, "eager"), ({"audio": 4}, "aot_eager")], ids=len
)
def test_compiles_to_one_graph(dims, backend):
    inputs, masks, labels = make_batch(dims=dims)
    model, objective = make_model(dims).eval(), TDMERLoss(Sentiment())

    def whole(inputs, masks, labels):
        out = model(inputs, masks)
        return out.logits, objective(out, labels).total

    compiled = torch.compile(whole, fullgraph=True, backend=backend)
    for one, two in zip(compiled(inputs, masks, labels), whole(inputs, masks, labels), strict=True):
        torch.testing.assert_close(one, two)
