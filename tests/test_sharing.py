"""Sharing DDT's condition encoder over evaluations: `dit_jax.sample` against a Python loop."""

import collections
import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import dit_jax
from dit_jax.cli import parse_sharing
from dit_jax.diffusion import Autoguidance, ClassifierFree, Dopri5, Euler, Sampling, Sharing
from dit_jax.errors import InputError
from dit_jax.evaluation.evaluate import evaluate
from dit_jax.evaluation.options import Evaluation
from dit_jax.models import DDT, DiTDH
from dit_jax.parallel.mesh import Parallel
from dit_jax.serialization import from_json, to_json
from dit_jax.sharing import encoder_similarity, find_steps
from tests.evaluation.tiny_run import random_params, tiny_experiment, tiny_run

LABELS, STEPS = [3, 0, 9], 6
INTERVAL = ClassifierFree(2.0, interval=(0.1, 0.7))
SOME = Sharing(steps=(0, 1, 4))


@pytest.fixture(scope="module")
def run():
    model = DDT(patch=4, hidden=16, encoder_depth=2, decoder_depth=1, heads=2, num_classes=10)
    run = tiny_run(model=model, sampling=Sampling(Euler(STEPS), INTERVAL, SOME))
    params = random_params(model, run.shape, 0)
    # Smaller ones, or the output says little of the encoder's.
    return dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf / 2, params))


@pytest.fixture(scope="module")
def by_hand(run):
    """Euler's method one step after another, (refreshes, guidance) -> samples and conditions."""
    apply = jax.jit(run.model.apply, static_argnames="method")
    params = {"params": run.params}
    label = np.array(LABELS, np.int32)
    label = np.concatenate([label, np.full_like(label, 10)])
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    noise = np.stack([jax.random.normal(jax.random.split(k)[0], (8, 8, 1)) for k in keys])

    def sample(refreshes, guidance):
        x, used = noise, []
        grid = np.linspace(1, 0, len(refreshes) + 1, dtype=np.float32)
        for now, then, refresh in zip(grid[:-1], grid[1:], refreshes):
            pair, t = np.concatenate([x, x]), np.full(6, now)
            used.append(
                apply(params, pair, t, {"label": label}, method="encode") if refresh else used[-1]
            )
            given, null = np.split(apply(params, pair, used[-1], method="decode").prediction, 2)
            inside = guidance.interval[0] <= now <= guidance.interval[1]
            scale = guidance.scale if inside else 1.0
            x = x + (then - now) * (null + scale * (given - null))
        return x, np.stack(used)

    return sample


def draw(run, **options):
    mesh = Parallel().mesh(jax.devices()[:1])
    return dit_jax.sample(run, LABELS, decode=False, mesh=mesh, **options)


def assert_same(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_the_halves_make_the_whole(run):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    t, condition = np.linspace(0, 1, 3, dtype=np.float32), {"label": np.array(LABELS)}
    params = {"params": run.params}
    s = run.model.apply(params, x, t, condition, method="encode")
    assert s.shape == (3, 4, 16)
    whole = run.model.apply(params, x, t, condition).prediction
    halves = run.model.apply(params, x, s, method="decode").prediction
    np.testing.assert_allclose(halves, whole, rtol=1e-6, atol=1e-6)


def test_an_encoder_that_runs_everywhere_is_no_sharing(run):
    everywhere = draw(run, sharing=Sharing(steps=tuple(range(STEPS))))
    # Two programs, which round differently.
    assert_same(everywhere, draw(run, sharing=Sharing()))


@pytest.mark.parametrize(
    ("sharing", "guidance"),
    [
        (Sharing(every=2), ClassifierFree(1.0)),
        (Sharing(every=2), ClassifierFree(2.0)),
        (SOME, INTERVAL),
    ],
)
def test_sharing_is_the_loop(run, by_hand, sharing, guidance):
    shared = draw(run, sharing=sharing, guidance=guidance)
    expected, _ = by_hand(sharing.refreshes(STEPS), guidance)
    assert_same(shared, expected)
    assert np.abs(shared - by_hand([True] * STEPS, guidance)[0]).max() > 1e-2


def test_the_runs_own_sharing_is_the_default_and_is_evaluated(run, tmp_path):
    on_eight_devices = dit_jax.sample(run, LABELS, decode=False)
    assert_same(on_eight_devices, draw(run, sharing=SOME))
    options = Evaluation(samples=8, batch_size=8)
    own = evaluate(run, tmp_path / "own", options)
    other = evaluate(run, tmp_path / "other", options, sharing=Sharing())
    assert own.protocol["sharing"] == repr(SOME) and other.protocol["sharing"] is None
    images = [np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("own", "other")]
    assert (images[0] != images[1]).any()


def test_the_encoder_is_not_run_in_between(run):
    runs = collections.Counter()

    def count(call, args, kwargs, context):
        name = context.method_name
        if isinstance(context.module, DDT) and name in ("encode", "decode"):
            jax.debug.callback(lambda: runs.update([name]))
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        draw(run, sharing=Sharing(every=3), solver=Euler(8))
    jax.effects_barrier()
    assert runs == {"encode": 3, "decode": 8}


def test_a_dit_dh_shares_its_body():
    """The last two of three evaluations use the first one's condition, as in a loop by hand."""
    body, head = {"hidden": 16, "depth": 1, "heads": 2}, {"wide_hidden": 24, "wide_depth": 1}
    model = DiTDH(4, **body, **head, wide_heads=2, num_classes=10)
    run = tiny_run(model=model, sampling=Sampling(Euler(3), ClassifierFree(1.0)))
    apply = jax.jit(run.model.apply, static_argnames="method")
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    x = np.stack([jax.random.normal(jax.random.split(k)[0], (8, 8, 1)) for k in keys])
    params, condition = {"params": run.params}, {"label": np.array(LABELS)}
    s = apply(params, x, np.ones(3, np.float32), condition, method="encode")
    assert s.shape == (3, 4, 24)
    for _ in range(3):
        x = x - apply(params, x, s, method="decode").prediction / 3
    shared = draw(run, sharing=Sharing(steps=(0,)))
    assert_same(shared, x)
    assert np.abs(shared - draw(run, sharing=Sharing())).max() > 1e-2


def test_similarity_is_that_of_the_conditions_along_the_way(run, by_hand):
    similarity = encoder_similarity(run, LABELS)
    _, tokens = by_hand([True] * STEPS, INTERVAL)
    tokens = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    expected = np.einsum("ibnd,jbnd->ijbn", tokens, tokens).mean((2, 3))
    assert similarity.shape == (STEPS, STEPS) and similarity.dtype == np.float32
    np.testing.assert_allclose(similarity, expected, atol=1e-4)
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    assert similarity.min() < 0.99


def test_the_steps_that_are_found_can_be_used(run):
    steps, gain = find_steps(run, 3, samples=3, seed=0, guidance=None)
    sharing = parse_sharing(steps.removeprefix("--sharing "))
    assert len(sharing.steps) == 3 and sharing.refreshes(STEPS).sum() == 3
    best, plain = (float(part.split(":")[1].split(";")[0]) for part in (gain, gain[-8:]))
    assert plain <= best <= 1 and f"{STEPS} evaluations" in gain
    assert np.isfinite(draw(run, sharing=sharing)).all()
    with pytest.raises(InputError, match="budget of 7 for 6 evaluations"):
        find_steps(run, 7, samples=3, seed=0, guidance=None)


@pytest.mark.parametrize(
    ("text", "sharing"),
    [(None, None), ("5", Sharing(every=5)), ("1", Sharing()), ("0", Sharing(steps=(0,)))]
    + [("0,3,9", Sharing(steps=(0, 3, 9)))],
)
def test_sharing_on_the_command_line(text, sharing):
    assert parse_sharing(text) == sharing


@pytest.mark.parametrize("text", ["", "five", "0,1,"])
def test_what_is_no_number_on_the_command_line_is_refused(text):
    with pytest.raises(InputError, match="try 5, or 0,3,9"):
        parse_sharing(text)


def test_sharing_is_part_of_the_configuration(run):
    sampling = run.experiment.sampling
    assert from_json(to_json(sampling)) == sampling and sampling.sharing == SOME
    older = to_json(Sampling(Euler(2)))
    del older["fields"]["sharing"]  # A checkpoint from before there was any.
    assert from_json(older) == Sampling(Euler(2))


def test_only_a_model_with_an_encoder_can_share(run):
    dit = tiny_experiment(sampling=Sampling(Euler(STEPS), None, Sharing(every=2)))
    with pytest.raises(InputError, match="DiT has no condition encoder"):
        dit.check()
    plain = tiny_run()
    with pytest.raises(InputError, match="DiT has no condition encoder"):
        dit_jax.sample(plain, LABELS, sharing=Sharing(every=2))
    with pytest.raises(InputError, match="DiT has no condition encoder"):
        encoder_similarity(plain, LABELS)


def test_what_cannot_share_is_refused_before_anything_is_drawn(run):
    with pytest.raises(InputError, match="steps from 0 to 3"):
        draw(run, solver=Euler(4))
    with pytest.raises(InputError, match="Dopri5 chooses its steps"):
        draw(run, solver=Dopri5())
    with pytest.raises(InputError, match="shares the encoder of neither"):
        draw(run, guidance=Autoguidance(2.0), weak=run)
    experiment = dataclasses.replace(run.experiment, sampling=Sampling(Euler(4), None, SOME))
    with pytest.raises(InputError, match="steps from 0 to 3"):
        experiment.check()
