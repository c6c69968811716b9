"""Scores, readouts and stored embeddings, each against a plain computation."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import evaluation
from common.decoder import AdamDecoder, RidgeDecoder, scheduled
from common.digits import load_digits
from common.dist import Workers
from common.encoder import EMBEDDING, Encoder
from common.errors import BadInput
from common.problem import Embeddings, ProblemSettings, fingerprint
from common.reservoir import draw_reservoir, rollout_reference
from common.ridge import NormalEquations
from common.rollout import Rollout

T = 4


class MadeUpEmbeddings:
    """Embeddings drawn from a generator: what evaluation needs of the real ones, without the encoder."""

    def __init__(self, train=60, validation=30, test=150):
        generator = torch.Generator().manual_seed(0)
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.stored = {
            s: torch.randn(n, T + 1, EMBEDDING, generator=generator).cumsum(dim=1) for s, n in self.sizes.items()
        }
        self.problem = SimpleNamespace(sequence_length=T)

    def get(self, split, index_B):
        return self.stored[split][index_B]

    error_scale = 1.0


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(1)
    rollout = Rollout(draw_reservoir(40, 3, seed=0), 0.5, 0.99)
    u, v = (torch.randn(40, 2, generator=generator) * 0.2 for _ in range(2))
    decoder = torch.nn.Linear(40, EMBEDDING)
    torch.nn.init.normal_(decoder.weight, std=0.1, generator=generator)
    return rollout, u, v, decoder


def plain_states(rollout, u, v, z_BFE):
    """float64 (B, T, N) by the reference rollout."""
    z_TBE = z_BFE[:, :-1].permute(1, 0, 2).to(torch.float64)
    reservoir = rollout.reservoir.to("cpu", torch.float64)
    return rollout_reference(reservoir, u.double(), v.double(), rollout.leak, z_TBE).permute(1, 0, 2)


def scored_and_expected(rollout, u, v, decoder, embeddings):
    """The score on the test set, and MSE by frame of the reference rollout in float64."""
    with Workers(torch.device("cpu")) as workers:
        got = evaluation.score(rollout, u, v, decoder, embeddings, "test", workers)
    z = embeddings.stored["test"]
    prediction = plain_states(rollout, u, v, z) @ decoder.weight.double().T + decoder.bias.double()
    return got, (prediction - z[:, 1:].double()).square().mean(dim=(0, 2)).detach()


def test_score_is_the_mean_squared_error_by_target_frame(network):
    got, expected = scored_and_expected(*network, MadeUpEmbeddings(test=150))  # one whole tile and a padded one
    assert torch.allclose(got.by_frame_T, expected, rtol=1e-5)
    assert got.mse == pytest.approx(float(expected.mean()), rel=1e-5)
    assert got.last_frame == pytest.approx(float(expected[-1]), rel=1e-5)


def test_a_core_outside_the_guard_is_scored_on_every_frame(network):
    _, u, v, decoder = network
    rollout = Rollout(draw_reservoir(40, 3, seed=0), 0.5, guard=1e-3)  # every column fails at the first step
    got, expected = scored_and_expected(rollout, u, v, decoder, MadeUpEmbeddings(test=20))
    assert torch.allclose(got.by_frame_T, expected, rtol=1e-5)


def test_normal_equations_agree_with_lstsq():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 6)), generator.normal(size=(200, 3)) + 5
    equations = NormalEquations(6, 3)
    for rows in np.split(np.arange(200), 4):  # streamed in four pieces
        equations.add(NormalEquations.products(torch.from_numpy(x[rows].T), torch.from_numpy(y[rows].T)))
    expected = np.linalg.lstsq(np.hstack((x, np.ones((200, 1)))), y, rcond=None)[0]
    assert np.allclose(equations.solve(0.0).numpy(), expected)


def test_ridge_penalty_is_that_of_an_augmented_least_squares_problem():
    generator = np.random.default_rng(1)
    x, y, penalty = generator.normal(size=(50, 4)), generator.normal(size=(50, 2)), 0.3
    equations = NormalEquations(4, 2)
    equations.add(NormalEquations.products(torch.from_numpy(x.T), torch.from_numpy(y.T)))
    # Rows √λ e_i with target 0 below the data; λ relative to the mean squared feature; no row for the constant.
    strength = np.sqrt(penalty * (x**2).sum(axis=0).mean())
    rows = np.hstack((strength * np.eye(4), np.zeros((4, 1))))
    expected = np.linalg.lstsq(
        np.vstack((np.hstack((x, np.ones((50, 1)))), rows)), np.vstack((y, np.zeros((4, 2)))), rcond=None
    )[0]
    assert np.allclose(equations.solve(penalty).numpy(), expected)


def test_ridge_score_is_a_least_squares_readout_of_the_states(network, monkeypatch):
    rollout, u, v, _ = network
    monkeypatch.setattr(evaluation, "PENALTIES", (1e-3,))
    embeddings = MadeUpEmbeddings(train=100, validation=10, test=70)
    states = lambda input_TEB: rollout.states(u, v, rollout.drive(input_TEB))  # noqa: E731
    got, penalty = evaluation.ridge_scores(states, rollout.size, embeddings, map)
    assert penalty == 1e-3

    def rows(split):
        states = plain_states(rollout, u, v, embeddings.stored[split]).flatten(0, 1).numpy()
        return np.hstack((states, np.ones((len(states), 1)))), embeddings.stored[split][:, 1:].flatten(
            0, 1
        ).double().numpy()

    x, y = rows("train")
    penalty = np.eye(41) * 1e-3 * (x[:, :-1] ** 2).sum(axis=0).mean()
    penalty[-1, -1] = 0
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    for split in ("validation", "test"):
        x, y = rows(split)
        assert got[split].mse == pytest.approx(((x @ weights - y) ** 2).mean(), rel=1e-4)


def test_ridge_chooses_its_penalty_on_validation():
    seen = []

    def errors(candidates):
        seen.extend(candidates)
        return [abs(number - 2) for number in range(len(candidates))]  # the third candidate is the best

    products = NormalEquations.products(torch.randn(2, 9).double(), torch.randn(EMBEDDING, 9).double())
    weights, penalty = evaluation.fit_ridge([products], errors, 2)
    assert penalty == evaluation.PENALTIES[2] and torch.equal(weights, seen[2])


def test_lags_before_the_first_frame_are_the_mean():
    z = torch.arange(1, 6, dtype=torch.float32).reshape(1, 5, 1).expand(1, 5, EMBEDDING)  # frame t holds the number t
    features = evaluation.lagged(z, 3, torch.full((EMBEDDING,), 9.0)).reshape(3, EMBEDDING, 4)
    assert features[:, 0].tolist() == [[1, 2, 3, 4], [9, 1, 2, 3], [9, 9, 1, 2]]


def test_trivial_predictors(monkeypatch):
    monkeypatch.setattr(evaluation, "PENALTIES", (1e-6,))
    embeddings = MadeUpEmbeddings(train=200, validation=20, test=40)
    scores = evaluation.trivial_scores(embeddings, evaluation.trivial_predictors(embeddings))
    got = scores["test"]
    train, test = embeddings.stored["train"].double().numpy(), embeddings.stored["test"].double().numpy()
    mean = train[:, 1:].mean(axis=(0, 1))
    assert got["mean"].mse == pytest.approx(((test[:, 1:] - mean) ** 2).mean(), rel=1e-9)
    assert got["copy_last"].mse == pytest.approx(((test[:, 1:] - test[:, :-1]) ** 2).mean(), rel=1e-9)
    assert got["copy_last"].last_frame == pytest.approx(((test[:, -1] - test[:, -2]) ** 2).mean(), rel=1e-9)
    # AR(1) by least squares on rows (sequence, step)
    x, y = train[:, :-1].reshape(-1, EMBEDDING), train[:, 1:].reshape(-1, EMBEDDING)
    weights = np.linalg.lstsq(np.hstack((x, np.ones((len(x), 1)))), y, rcond=None)[0]
    prediction = test[:, :-1] @ weights[:-1] + weights[-1]
    assert got["ar1"].mse == pytest.approx(((prediction - test[:, 1:]) ** 2).mean(), rel=1e-3)
    assert got["ar3"].by_frame_T.shape == (T,)
    validation = embeddings.stored["validation"].double().numpy()
    assert scores["validation"]["mean"].mse == pytest.approx(((validation[:, 1:] - mean) ** 2).mean(), rel=1e-9)


# --- Decoder ---------------------------------------------------------------------------------------------------------


def test_a_decoder_step_is_adam_on_the_least_squares_gradient():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 3, 5, generator=generator)  # (N, T, B)
    target = torch.randn(3, EMBEDDING, 5, generator=generator)  # (T, E, B)
    training = AdamDecoder(7)
    loss = training.step(states, target, rate=0.01)
    assert loss == pytest.approx(float(target.square().mean()), rel=1e-6)  # Wout starts at zero
    h, y = states.flatten(1).double().numpy(), target.permute(1, 0, 2).flatten(1).double().numpy()
    gradient = -2 * y @ h.T / y.size
    # Adam's first step is rate · g / (|g| + 1e-8)
    expected = -0.01 * gradient / (np.abs(gradient) + 1e-8)
    assert np.allclose(training.linear.weight.detach().numpy(), expected, atol=1e-6)


def a_minibatch(generator, size=7, steps=3, batch=5):
    """States (N, T, B) and targets (T, E, B) that a linear readout can explain in part."""
    states = torch.randn(size, steps, batch, generator=generator)
    truth = torch.linspace(-1, 1, EMBEDDING * size).reshape(EMBEDDING, size)
    return states, torch.einsum("en,ntb->teb", truth, states) + torch.randn(
        steps, EMBEDDING, batch, generator=generator
    ) + 2


def test_a_recursive_ridge_is_least_squares_in_which_old_minibatches_fade():
    generator, memory, penalty = torch.Generator().manual_seed(0), 12.0, 0.1
    decoder = RidgeDecoder(7, "cpu", penalty, memory, refit=3)
    minibatches = [a_minibatch(generator) for _ in range(6)]
    for states, target in minibatches:
        decoder.step(states, target)
    # Row by row in float64: a sample of the minibatch that was read k minibatches ago weighs exp(−5 k / 12).
    x = np.concatenate([np.vstack((s.flatten(1), np.ones((1, 15)))).T for s, _ in minibatches]).astype(np.float64)
    y = np.concatenate([t.permute(0, 2, 1).flatten(0, 1).numpy() for _, t in minibatches]).astype(np.float64)
    weight = np.repeat(np.exp(-5 / memory * np.arange(5, -1, -1)), 15)
    gram = (x.T * weight) @ x
    gram[np.arange(7), np.arange(7)] += penalty * gram.diagonal()[:-1].mean()
    expected = np.linalg.solve(gram, (x.T * weight) @ y)
    assert np.allclose(decoder.linear.weight.detach().numpy(), expected[:-1].T, atol=2e-5)
    assert np.allclose(decoder.linear.bias.detach().numpy(), expected[-1], atol=2e-5)


def test_a_recursive_ridge_tells_the_loss_before_it_has_read_the_minibatch_and_solves_now_and_then():
    generator = torch.Generator().manual_seed(0)
    decoder, solved = RidgeDecoder(7, "cpu", 1e-3, 100.0, refit=6), []
    for step in range(1, 14):
        states, target = a_minibatch(generator)
        before = decoder.predict(states)
        loss = decoder.step(states, target)
        assert loss == pytest.approx(float((before - target).square().mean()), rel=1e-5)
        if not torch.equal(decoder.predict(states), before):
            solved.append(step)
    assert solved == [1, 2, 4, 6, 8, 12]  # powers of two, then every sixth


def test_a_recursive_ridge_stays_where_its_equations_have_no_solution():
    decoder = RidgeDecoder(7, "cpu", 1e-300, 100.0, refit=1)
    states = torch.zeros(7, 1, 1)
    states[0] = 1.0  # six units at rest, and next to no penalty
    assert np.isfinite(decoder.step(states, torch.ones(1, EMBEDDING, 1)))
    assert not decoder.linear.weight.any() and not decoder.linear.bias.any()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("make", [AdamDecoder, lambda size: RidgeDecoder(size, "cpu", 1e-3, 100.0, refit=1)])
def test_a_decoder_learns_nothing_from_states_that_are_not_finite(make, broken):
    generator = torch.Generator().manual_seed(0)
    decoder, states, target = make(7), *a_minibatch(generator)
    decoder.step(states, target, 0.01)
    before = copy.deepcopy(decoder.state_dict())
    states[2, 1, 3] = broken
    assert not np.isfinite(decoder.step(states, target, 0.01))
    assert_equal_states(decoder.state_dict(), before)


@pytest.mark.parametrize("make", [AdamDecoder, lambda size: RidgeDecoder(size, "cpu", 1e-3, 20.0, refit=3)])
def test_a_decoder_goes_on_from_its_state_in_the_same_bits(make):
    generator = torch.Generator().manual_seed(0)
    minibatches = [a_minibatch(generator) for _ in range(8)]
    whole, first, second = make(7), make(7), make(7)
    for decoder, part in ((whole, minibatches), (first, minibatches[:5])):
        for states, target in part:
            decoder.step(states, target, 0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for states, target in minibatches[5:]:
        second.step(states, target, 0.01)
    assert_equal_states(second.state_dict(), whole.state_dict())


def assert_equal_states(one, other):
    """Nested dictionaries of tensors and numbers, equal to the bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_states(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_schedules():
    assert scheduled(0.5, "constant", 0.7) == 0.5
    assert scheduled(1.0, "cosine", 0.0) == 1.0
    assert scheduled(1.0, "cosine", 0.5) == pytest.approx(0.505)
    assert scheduled(1.0, "cosine", 1.0) == pytest.approx(0.01)


# --- Problem and stored embeddings -----------------------------------------------------------------------------------

SMALL = dict(sequence_length=3, hidden_size=16, in_degree=4, validation_sequences=5, test_sequences=70)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOVING_MNIST_CACHE", str(tmp_path))
    monkeypatch.setattr("common.encoder.CALIBRATION_SEQUENCES", 20)
    monkeypatch.setattr("common.problem.CALIBRATION_SEQUENCES", 20)
    return tmp_path


@pytest.fixture
def workers():
    with Workers(torch.device("cpu")) as workers:
        yield workers


@pytest.fixture
def embeddings_of(cache, workers):
    def build(settings, train=9):
        digits = settings.load_digits()
        embeddings = Embeddings(settings.problem(digits), digits, train, workers)
        embeddings.prepare(workers)
        return embeddings

    return build


def test_a_cached_split_is_what_encoding_gives_and_is_read_back(cache, embeddings_of):
    first = embeddings_of(ProblemSettings(**SMALL))
    names = sorted(path.name for path in cache.iterdir())
    assert [name.split("-")[0] for name in names] == ["calibration", "test", "train", "validation"]
    direct = first.encode_sequences("test", torch.tensor([0, 69, 3]))
    assert torch.equal(first.get("test", torch.tensor([0, 69, 3])), direct)
    before = [path.stat().st_mtime_ns for path in sorted(cache.iterdir())]
    second = embeddings_of(ProblemSettings(**SMALL))
    assert before == [path.stat().st_mtime_ns for path in sorted(cache.iterdir())]
    assert torch.equal(second.stored["test"], first.stored["test"])
    # A run that found everything cached encodes new frames as the one that made the cache did.
    assert torch.equal(second.encode_sequences("test", torch.tensor([3])), direct[2:])


def test_another_encoder_or_data_seed_has_another_cache(cache, embeddings_of):
    first = embeddings_of(ProblemSettings(**SMALL))
    other = embeddings_of(ProblemSettings(**SMALL, encoder_seed=1))
    assert len(list(cache.iterdir())) == 8
    assert not torch.equal(first.stored["test"], other.stored["test"])


def test_one_calibration_is_enough_for_all_lengths_and_numbers_of_digits(cache, embeddings_of, monkeypatch):
    first = embeddings_of(ProblemSettings(**SMALL))
    calibrate, called = Encoder.calibrate, []
    monkeypatch.setattr(Encoder, "calibrate", lambda *a: called.append(1) or calibrate(*a))
    longer = embeddings_of(ProblemSettings(**{**SMALL, "sequence_length": SMALL["sequence_length"] + 1, "digits": 2}))
    assert not called and torch.equal(longer.encoder.scale_E, first.encoder.scale_E)
    assert torch.equal(longer.encoder.shift_E, first.encoder.shift_E)
    embeddings_of(ProblemSettings(**SMALL, encoder_seed=1))
    assert called == [1]


def test_a_damaged_calibration_is_named(cache, embeddings_of):
    embeddings_of(ProblemSettings(**SMALL))
    path = next(cache.glob("calibration-*"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadInput, match=path.name):
        embeddings_of(ProblemSettings(**{**SMALL, "sequence_length": SMALL["sequence_length"] + 1}))


def test_a_damaged_cache_file_is_named(cache, embeddings_of):
    embeddings_of(ProblemSettings(**SMALL))
    path = next(cache.glob("test-*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=path.name):
        embeddings_of(ProblemSettings(**SMALL))


def test_an_unwritable_cache_is_bad_input(cache, embeddings_of, monkeypatch):
    file = cache / "file"
    file.touch()
    monkeypatch.setenv("MOVING_MNIST_CACHE", str(file / "below"))
    with pytest.raises(BadInput, match="MOVING_MNIST_CACHE"):
        embeddings_of(ProblemSettings(**SMALL))


def test_two_digits_are_divided_by_their_own_variance(embeddings_of):
    embeddings = embeddings_of(ProblemSettings(**SMALL, digits=2))
    targets = embeddings.stored["test"][:, 1:].flatten(0, 1).double().numpy()
    assert embeddings.error_scale == pytest.approx(targets.var(axis=0).mean(), rel=1e-9)
    assert embeddings_of(ProblemSettings(**SMALL)).error_scale == 1.0


def test_problem_id_names_the_problem_and_nothing_else():
    digits = load_digits()
    base = ProblemSettings().problem(digits)
    assert base.id == fingerprint(base.description)
    assert base.id == ProblemSettings(mnist_dir="elsewhere", horizon=9).problem(digits).id
    changed = dict(
        digits=2, sequence_length=21, standardise="none", hidden_size=100, in_degree=10, topology="erdos-renyi",
        weight_scale="variance", gain=1.0, input_scale=0.1, leak=0.2, data_seed=1, encoder_seed=1, reservoir_seed=1,
        validation_sequences=10, test_sequences=10,
    )  # fmt: skip
    ids = {ProblemSettings(**{name: value}).problem(digits).id for name, value in changed.items()}
    assert len(ids | {base.id}) == len(changed) + 1
