"""The systems that TDMER is compared with: inputs, masks, tasks, and that they learn."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmer import Classification, MultiLabel, Sentiment
from tdmer.baselines import (
    SYSTEMS,
    BaselineLoss,
    contrastive_loss,
    correlation_loss,
    difference_loss,
    like_labels,
    prior_loss,
    supervised_loss,
)
from tdmer.data import collate, make_synthetic
from tests.batches import DIMS, gradients, make_batch, pad

NAN = float("nan")
SMALL = {
    "unimodal": {"width": 8},
    "early_fusion": {"width": 8},
    "late_fusion": {"width": 8},
    "tfn": {"width": 4, "hidden": 8},
    "lmf": {"width": 8},
    "mfm": {"width": 8, "factor_width": 8},
    "iccn": {"width": 10, "correlated": 3},
    "mult": {"width": 8, "heads": 2, "layers": 1, "memory": 1},
    "misa": {"width": 8},
    "fdmer": {"width": 8, "heads": 2},
    "confede": {"width": 8},
}
TASKS = {
    "classification": (Classification(3), torch.tensor([0, 2, -100, 2])),
    "sentiment": (Sentiment(), torch.tensor([-3.0, 0.5, NAN, 1.0])),
    "multilabel": (MultiLabel(2), torch.tensor([[0.0, 1.0], [1.0, NAN], [NAN, NAN], [1.0, 1.0]])),
}

every_system = pytest.mark.parametrize("system", SYSTEMS)


def make(system, dims=DIMS, classes=7, **options):
    torch.manual_seed(0)
    return SYSTEMS[system](dims, classes, **SMALL[system], **options)


def total(model, inputs, masks, labels, task=None):
    """The objective of an untrained model in use: nothing is dropped."""
    out = model.eval()(inputs, masks)
    return out.logits, BaselineLoss(task or Sentiment())(out, labels)


@every_system
@pytest.mark.parametrize("kind", TASKS)
def test_every_task_reaches_every_weight(system, kind):
    (task, labels), (inputs, masks, _) = TASKS[kind], make_batch()
    model = make(system, classes=task.num_classes)
    out = model(inputs, masks, labels, ["any", "rest"])
    assert out.logits.shape == (4, task.num_classes)
    terms = BaselineLoss(task)(out, labels)
    for value in (terms.total, terms.task, *terms.auxiliary.values()):
        assert value.shape == ()
        assert value.isfinite()
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_system
def test_pads_change_nothing(system):
    inputs, masks, labels = make_batch()
    model = make(system)
    logits, terms = total(model, inputs, masks, labels)
    terms.total.backward()
    expected = gradients(model)
    logits_padded, terms_padded = total(model, *pad(inputs, masks, 3, NAN), labels)
    terms_padded.total.backward()
    torch.testing.assert_close(logits_padded, logits)
    torch.testing.assert_close(terms_padded, terms)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@every_system
def test_a_sample_alone_without_pads_is_predicted_as_in_the_batch(system):
    inputs, masks, _ = make_batch()
    model = make(system).eval()
    logits = model(inputs, masks).logits
    for i in range(4):
        alone = {m: x[i : i + 1, masks[m][i]] for m, x in inputs.items()}
        torch.testing.assert_close(model(alone).logits, logits[i : i + 1])


@every_system
@pytest.mark.parametrize("absent", ["text", "audio"])
def test_a_missing_modality_is_not_read(system, absent):
    inputs, masks, labels = make_batch()
    model = make(system)
    masks[absent][:] = False
    inputs[absent][:] = NAN
    logits, terms = total(model, inputs, masks, labels)
    terms.total.backward()
    for name, gradient in gradients(model).items():
        # In LMF a 1 is appended, and its weight is one of the modality's.
        part, *modality = name.split(".")
        assert modality[:1] != [absent] or part == "factors" or not gradient.any(), name
    others = {m: x for m, x in inputs.items() if m != absent}
    without, terms_without = total(model, others, masks, labels)
    torch.testing.assert_close(logits, without)
    torch.testing.assert_close(terms, terms_without)


@every_system
def test_a_sample_of_nothing_is_finite_and_leaves_the_others_alone(system):
    inputs, masks, labels = make_batch()
    model = make(system)
    expected, _ = total(model, inputs, masks, labels)
    for m in inputs:
        masks[m][1] = False
        inputs[m][1] = NAN
    logits, terms = total(model, inputs, masks, labels)
    torch.testing.assert_close(logits[[0, 2, 3]], expected[[0, 2, 3]])
    assert logits.isfinite().all()
    terms.total.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@every_system
def test_the_order_of_the_modalities_does_not_matter(system):
    inputs, masks, labels = make_batch()
    options = {"modality": "text"} if system == "unimodal" else {}
    one = make(system, **options)
    other = make(system, dict(reversed(DIMS.items())), **options)
    assert all(torch.equal(x, other.state_dict()[n]) for n, x in one.state_dict().items())
    logits, terms = total(one, inputs, masks, labels)
    logits_other, terms_other = total(other, dict(reversed(inputs.items())), masks, labels)
    assert torch.equal(logits, logits_other)
    torch.testing.assert_close(terms.total, terms_other.total)


@pytest.mark.parametrize("system", [s for s in SYSTEMS if s not in ("mult", "iccn")])
def test_one_modality_and_five(system):
    for count in (1, 5):
        dims = {f"m{n}": 3 for n in range(count)}
        inputs, masks, labels = make_batch(dims=dims)
        logits, terms = total(make(system, dims), inputs, masks, labels)
        assert logits.shape == (4, 7)
        assert terms.total.isfinite()


@pytest.fixture(scope="module")
def world():
    """A small world in which the text tells the label."""
    sizes, dims = {"train": 64, "test": 64}, {"text": 6, "audio": 4, "video": 3}
    signal, noise = {"text": 1.0}, 0.2
    made = make_synthetic(sizes, dims=dims, factors=1, signal=signal, noise=noise, steps=(2, 4))
    batches = {}
    for name, (data, *_) in made.items():
        batch = collate(list(data))
        batches[name] = batch._replace(labels=(batch.labels > 0).long())
    return batches


@every_system
def test_it_learns(system, world):
    """Of labels by the private factor of one of three modalities."""
    train, test = world["train"], world["test"]
    model, task = make(system, classes=2), Classification(2)
    model.normalizations.fit([train])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(0)
    for _ in range(30):
        terms = BaselineLoss(task)(model(*train), train.labels)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    hits = task.predict(model.eval()(*test).logits) == test.labels
    assert hits.float().mean() > 0.75


@every_system
def test_saved_and_loaded(system, tmp_path):
    inputs, masks, _ = make_batch()
    model = make(system).eval()
    model.save_pretrained(tmp_path, task=Sentiment())
    again = SYSTEMS[system].from_pretrained(tmp_path)
    assert again.options == model.options
    assert torch.equal(again(inputs, masks).logits, model(inputs, masks).logits)
    assert repr(again).startswith(f"{type(model).__name__}(\n  dims=")


@pytest.mark.usefixtures("unchecked")
def test_the_whole_forward_pass_is_one_graph():
    inputs, masks, _ = make_batch()
    model = make("fdmer").eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs, masks).logits, model(inputs, masks).logits)


@every_system
@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_answered_as_by_tdmer(system):
    inputs, masks, _ = make_batch()
    model = make(system)
    with pytest.raises(ValueError, match=r"inputs must be of \['text', 'audio', 'video'\], got"):
        model(inputs | {"face": torch.zeros(4, 2, 2)})
    with pytest.raises(ValueError, match=r"inputs\['text'\] must have 6 features on its last axis"):
        model(inputs | {"text": torch.zeros(4, 2, 5)})
    with pytest.raises(TypeError, match=r"masks\['text'\] must be a bool tensor"):
        model(inputs, masks | {"text": torch.ones(4, 5)})
    with pytest.raises(ValueError, match="inputs must have one batch size"):
        model(inputs | {"text": torch.zeros(3, 5, 6)})


@pytest.mark.parametrize(
    ("system", "dims", "options", "message"),
    [
        ("mult", {"text": 3}, {}, "dims must hold at least 2 different names"),
        ("iccn", {"text": 3}, {}, "dims must hold at least 2 different names"),
        ("iccn", {"face": 3, "voice": 2}, {}, r"anchor must be one of \['face', 'voice'\], got"),
        ("tfn", DIMS, {"width": 100}, r"width must be such that \(width \+ 1\) \*\* 3 is at most"),
        ("tfn", DIMS, {"read": ["face"]}, r"read must be of \['text', 'audio', 'video'\], got"),
        ("misa", DIMS, {"read": ["face"]}, r"read must be of \['text', 'audio', 'video'\], got"),
        ("unimodal", DIMS, {"modality": "face"}, "modality must be one of"),
        ("confede", DIMS, {"temperature": 0.0}, "temperature must be finite and above 0"),
        ("lmf", DIMS, {"rank": 0}, "rank must be at least 1, got 0"),
        ("mult", DIMS, {"width": 9, "heads": 2}, "width must be a multiple of heads"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_options(system, dims, options, message):
    with pytest.raises(ValueError, match=message):
        SYSTEMS[system](dims, 3, **options)


def test_the_page_counts_the_weights_right():
    page = (Path(__file__).parents[1] / "docs" / "baselines.md").read_text()
    for system, kind in SYSTEMS.items():
        model = kind({"text": 384, "audio": 73, "video": 6}, 7)
        count = sum(p.numel() for p in model.parameters())
        assert re.search(rf"^\| `{system}` \|.*\| {count:,} \|$", page, re.MULTILINE)


class TestMFM:
    """What is done for all steps at once, against torch's cells from step to step."""

    def test_the_memory_is_that_of_the_equations(self):
        torch.manual_seed(0)
        fusion = make("mfm").double().eval().fusion
        lengths = {"text": [4, 2], "audio": [3, 6], "video": [5, 1]}
        x = {m: torch.randn(2, max(own), DIMS[m]).double() for m, own in lengths.items()}
        masks = {m: torch.arange(x[m].shape[1]) < torch.tensor(lengths[m])[:, None] for m in x}
        names = sorted(x)
        for sample, found in enumerate(fusion(x, masks)):
            states = {m: (torch.zeros(1, 8).double(),) * 2 for m in names}
            memory = torch.zeros(1, 8).double()
            for step in range(max(lengths[m][sample] for m in names)):
                before = [states[m][1] for m in names]
                for m in names:
                    if step < lengths[m][sample]:
                        states[m] = cell(fusion.cells[m].lstm)(x[m][sample, step][None], states[m])
                window = torch.cat([*before, *(states[m][1] for m in names)], dim=1)
                attended = fusion.attend(window).softmax(dim=1) * window
                both = torch.cat([attended, memory], dim=1)
                made = fusion.propose(attended).tanh()
                memory = fusion.keep(both).sigmoid() * memory + fusion.write(both).sigmoid() * made
            expected = torch.cat([*(states[m][0] for m in names), memory], dim=1)
            torch.testing.assert_close(found, expected[0])

    def test_a_decoder_feeds_its_state_back(self):
        torch.manual_seed(0)
        decoder = make("mfm").double().decoders["text"]
        start = torch.randn(3, decoder.lstm.input_size).double()
        step = cell(decoder.lstm)
        state = step(start)
        with torch.no_grad():  # Two weights read the state in a cell, and act by their sum.
            step.weight_hh.sub_(step.weight_ih)
        states = [state[0]]
        for _ in range(4):
            state = step(state[0], state)
            states.append(state[0])
        torch.testing.assert_close(decoder(start, 5), decoder.out(torch.stack(states, dim=1)))


def cell(lstm):
    made = torch.nn.LSTMCell(lstm.input_size, lstm.hidden_size).double()
    made.load_state_dict({n.removesuffix("_l0"): x.clone() for n, x in lstm.state_dict().items()})
    return made


class TestObjective:
    def test_weights_take_the_place_of_those_of_the_system(self):
        inputs, masks, labels = make_batch()
        out = make("misa").eval()(inputs, masks)
        weights = {"similarity": 0.0, "difference": 2.0}
        terms = BaselineLoss(Sentiment(), weights=weights)(out, labels)
        found = terms.auxiliary
        expected = terms.task + 2 * found["difference"] + found["reconstruction"]
        torch.testing.assert_close(terms.total, expected)
        with pytest.raises(ValueError, match=r"weights must be of .*, got .'similar'"):
            BaselineLoss(Sentiment(), weights={"similar": 1.0})(out, labels)

    def test_only_labelled_samples_that_count(self):
        task, logits = Classification(2), torch.randn(4, 2)
        labels, mask = torch.tensor([0, -100, 1, 1]), torch.tensor([True, True, False, True])
        expected = task(logits, labels)[[0, 3]].mean()
        torch.testing.assert_close(supervised_loss(task, logits, labels, mask), expected)
        assert supervised_loss(task, logits, torch.full((4,), -100)) == 0


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestLosses:
    def test_difference(self):
        x, y = rows(5, 3), rows(5, 3, seed=1)
        mask = torch.tensor([True, True, True, True, False])
        a, b = (part[:4].numpy() for part in (x, y))
        a, b = (part - part.mean(0) for part in (a, b))
        a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (a, b))
        expected = ((a.T @ b) ** 2).mean()
        x[4] = y[4] = NAN
        assert difference_loss(x, y, mask).item() == pytest.approx(expected, rel=1e-5)

    def test_correlation(self):
        """The canonical correlations are the cosines of the angles between the column spaces."""
        from scipy.linalg import subspace_angles

        x, y = rows(9, 3), rows(9, 2, seed=1)
        mask = torch.arange(9) < 8
        a, b = (part[:8].numpy() - part[:8].numpy().mean(0) for part in (x, y))
        # Of the lesser width there are two.
        expected = 1 - np.cos(subspace_angles(a, b)).mean()
        x[8] = y[8] = NAN
        assert correlation_loss(x, y, mask, ridge=0).item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_correlation_at_degenerate_points_has_a_finite_gradient(self, n):
        x = torch.ones(4, 3, requires_grad=True)
        value = correlation_loss(x, x.detach() * 2, torch.arange(4) < n)
        value.backward()
        assert value.isfinite()
        assert x.grad.isfinite().all()

    def test_prior(self):
        """Against the same discrepancy from a large drawn sample."""
        z, drawn = rows(6, 2) + 0.5, rows(2000, 2, seed=1)

        def kernel(x, y):
            return (-torch.cdist(x, y).square() / 2).exp().mean()

        expected = kernel(z[:5], z[:5]) - 2 * kernel(z[:5], drawn) + kernel(drawn, drawn)
        z[5] = NAN
        assert prior_loss(z, torch.arange(6) < 5).item() == pytest.approx(expected.item(), abs=0.01)

    def test_contrast(self):
        """Pair by pair."""
        b, m = 3, 2
        similar, dissimilar = rows(b, m, 4), rows(b, m, 4, seed=1)
        present = torch.tensor([[True, True], [True, False], [True, True]])
        alike = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
        unlike = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]]).bool()

        def score(x, y):
            return math.exp(torch.cosine_similarity(x, y, dim=0) / 0.5)

        errors = []
        where = [(i, p) for i in range(b) for p in range(m) if present[i, p]]
        for i, p in where:
            against = sum(score(similar[i, p], dissimilar[j, q]) for j, q in where if j == i)
            against += sum(
                score(similar[i, p], similar[j, q]) for j, q in where if q == p and unlike[i, j]
            )
            for j, q in where:
                if (i == j and p != q) or (p == q and alike[i, j]):
                    near = score(similar[i, p], similar[j, q])
                    errors.append(-math.log(near / (near + against)))
        found = contrastive_loss(similar, dissimilar, present, alike, unlike)
        assert found.item() == pytest.approx(np.mean(errors))

    def test_like_labels(self):
        alike, unlike = like_labels(Classification(3), torch.tensor([0, 2, 2, -100]))
        assert alike.nonzero().tolist() == [[1, 2], [2, 1]]
        assert unlike.nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [2, 0]]
        labels = torch.tensor([[1.0, 0.0], [1.0, NAN], [0.0, 1.0], [NAN, NAN]])
        alike, unlike = like_labels(MultiLabel(2), labels)
        assert alike.nonzero().tolist() == [[0, 1], [1, 0]]
        assert (0, 2) in map(tuple, unlike.nonzero().tolist())
        assert not (alike | unlike)[3].any()
