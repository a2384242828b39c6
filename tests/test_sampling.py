"""From a run to pictures: what `dit_jax.sample` promises, on a model that was never trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_jax
from dit_jax.diffusion import DDPM, Autoguidance, ClassifierFree, Euler, Gaussian, Heun, Sampling
from dit_jax.errors import InputError
from dit_jax.latents import VAE, Cached
from dit_jax.models import DiT
from dit_jax.parallel.mesh import Parallel
from dit_jax.sampling import check_labels, choose_guidance, preview_labels, sample_batches
from tests.evaluation.tiny_run import SCALE, STEPS, tiny_run, with_sampling

LABELS = [3, 0, 9, 10, 3]  # 10 is the null label.


@pytest.fixture(scope="module")
def run():
    return tiny_run()


@pytest.fixture(scope="module")
def weak():
    return tiny_run(seed=1)


@pytest.fixture(scope="module")
def latents(run):
    return dit_jax.sample(run, LABELS, decode=False)


@pytest.fixture(scope="module")
def unguided(run):
    return dit_jax.sample(run, LABELS, decode=False, guidance=1.0)


def initial_noise(count, seed=0, shape=(8, 8, 1)):
    """The noise of samples 0, 1, ...: the first half of a key folded from (seed, number)."""
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(count)]
    return np.stack([jax.random.normal(jax.random.split(key)[0], shape) for key in keys])


def by_hand(run, labels, scale, weak=None):
    """Euler's method on the guided velocity, one Python step after another."""
    apply = jax.jit(
        lambda params, x, t, label: run.model.apply({"params": params}, x, t, {"label": label})[0]
    )
    labels = np.array(labels, np.int32)
    null, other = (np.full_like(labels, 10), run.params) if weak is None else (labels, weak.params)
    x = initial_noise(len(labels))
    times = np.linspace(1, 0, STEPS + 1, dtype=np.float32)
    for now, then in zip(times[:-1], times[1:]):
        t = np.full(len(labels), now)
        strong = apply(run.params, x, t, labels)
        worse = apply(other, x, t, null)
        x = x + (then - now) * (worse + scale * (strong - worse))
    return x


def assert_same(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_samples_are_eulers_method_on_the_guided_velocity(run, latents):
    assert latents.shape == (5, 8, 8, 1) and latents.dtype == np.float32
    expected = by_hand(run, LABELS, SCALE)
    assert_same(latents, expected)
    assert np.abs(expected - initial_noise(5)).max() > 0.1  # The model moved them.


def test_images_are_the_latents_as_bytes(run, latents):
    images = dit_jax.sample(run, LABELS)
    assert isinstance(images, np.ndarray)
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8
    expected = np.floor(np.clip(127.5 * latents.astype(np.float64) + 128, 0, 255)).astype(int)
    difference = np.abs(images.astype(int) - expected)
    # Another program rounds otherwise, and a value on the edge of two bytes falls either way.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02
    assert len(np.unique(images)) > 10


def test_an_untrained_model_returns_its_noise(run):
    """All-zero parameters give velocity 0, so that a sample is what it started from."""
    zero = dataclasses.replace(run, params=jax.tree.map(np.zeros_like, run.params))
    for seed in (0, 5):
        samples = dit_jax.sample(zero, LABELS, seed=seed, decode=False)
        np.testing.assert_array_equal(samples, initial_noise(5, seed))


def test_the_seed_decides(run, latents):
    np.testing.assert_array_equal(dit_jax.sample(run, LABELS, decode=False, seed=0), latents)
    other = dit_jax.sample(run, LABELS, decode=False, seed=1)
    assert (np.abs(other - latents).max(axis=(1, 2, 3)) > 0.1).all()


def test_a_sample_depends_on_its_number_and_label_alone(run, latents):
    changed = dit_jax.sample(run, [3, 1, 9, 10, 3], decode=False)
    assert_same(changed[[0, 2, 3, 4]], latents[[0, 2, 3, 4]])
    assert np.abs(changed[1] - latents[1]).max() > 1e-2
    assert np.abs(latents[0] - latents[4]).max() > 0.1  # One label, two numbers.
    assert_same(dit_jax.sample(run, LABELS[:2], decode=False), latents[:2])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_the_batch_size_does_not_choose_the_samples(run, latents, batch_size):
    """Latents, as a byte may differ by one where matmuls of another shape round otherwise."""
    split = dit_jax.sample(run, LABELS, decode=False, batch_size=batch_size)
    assert_same(split, latents)


def test_batches_have_the_size_that_is_asked_for(run, latents):
    batches = list(sample_batches(run, check_labels(LABELS, 10), 2, decode=False))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert_same(np.concatenate(batches), latents)


def test_one_device_and_eight_draw_the_same(run, latents):
    assert jax.device_count() == 8
    mesh = Parallel().mesh(jax.devices()[:1])
    assert_same(dit_jax.sample(run, LABELS, decode=False, mesh=mesh), latents)
    assert_same(dit_jax.sample(run, LABELS, decode=False, mesh=mesh, batch_size=3), latents)


def test_no_more_programs_are_compiled_than_needed(run, latents):
    """A short last batch, other labels and another seed take the same program."""
    from dit_jax import sampling

    before = sampling._generate._cache_size()
    dit_jax.sample(run, [1] * 11, decode=False, seed=9, batch_size=8)
    assert sampling._generate._cache_size() == before


def test_a_guidance_of_1_is_none(run, latents, unguided):
    assert np.abs(unguided - latents).max() > 1e-2
    plain = dit_jax.sample(with_sampling(run, Euler(steps=STEPS)), LABELS, decode=False)
    np.testing.assert_array_equal(plain, unguided)
    for one in (1, ClassifierFree(1.0), Autoguidance(1.0)):
        assert choose_guidance(run, one) is None


def test_a_scale_is_classifier_free_guidance(run, latents):
    """The same program too: what is compared is the choice."""
    plain = with_sampling(run, Euler(steps=STEPS))
    for guidance in (SCALE, int(SCALE), ClassifierFree(SCALE)):
        assert choose_guidance(plain, guidance) == ClassifierFree(SCALE)
        guided = dit_jax.sample(plain, LABELS, decode=False, guidance=guidance)
        np.testing.assert_array_equal(guided, latents)


def test_the_null_label_cannot_be_guided(latents, unguided):
    """Both predictions are the same, up to rounding in w + s (c - w)."""
    null = LABELS.index(10)
    assert_same(latents[null], unguided[null], 1e-4)
    others = [i for i in range(5) if i != null]
    assert (np.abs(latents - unguided)[others].max(axis=(1, 2, 3)) > 1e-2).all()


def test_autoguidance_takes_a_weak_run(run, weak):
    guided = dit_jax.sample(run, LABELS, decode=False, guidance=Autoguidance(SCALE), weak=weak)
    assert_same(guided, by_hand(run, LABELS, SCALE, weak))
    by_scale = dit_jax.sample(run, LABELS, decode=False, guidance=SCALE, weak=weak)
    np.testing.assert_array_equal(by_scale, guided)


def test_autoguidance_and_a_weak_run_go_together(run, weak):
    with pytest.raises(InputError, match="give both or neither"):
        dit_jax.sample(run, LABELS, guidance=Autoguidance(SCALE))
    with pytest.raises(InputError, match="give both or neither"):
        dit_jax.sample(run, LABELS, guidance=ClassifierFree(SCALE), weak=weak)


def test_a_weak_run_needs_a_scale_and_the_same_inputs(run, weak):
    unguided = dataclasses.replace(
        run.experiment, sampling=Sampling(run.experiment.sampling.solver)
    )
    with pytest.raises(InputError, match="a weak run guides by a scale: give --guidance too"):
        dit_jax.sample(dataclasses.replace(run, experiment=unguided), LABELS, weak=weak)
    other = dataclasses.replace(weak, shape=(4, 4, 1))
    with pytest.raises(InputError, match=r"samples: \(4, 4, 1\) there, \(8, 8, 1\) here"):
        dit_jax.sample(run, LABELS, guidance=SCALE, weak=other)


def test_an_unconditional_model():
    model = DiT(patch=4, hidden=16, depth=2, heads=2, num_classes=0, learn_sigma=False)
    run = tiny_run(model=model, sampling=Sampling(Euler(steps=STEPS)))
    samples = dit_jax.sample(run, [0, 0, 0], decode=False)
    assert samples.shape == (3, 8, 8, 1) and np.isfinite(samples).all()
    assert np.abs(samples[0] - samples[1]).max() > 0.1
    with pytest.raises(InputError, match="nothing to guide"):
        dit_jax.sample(run, [0], guidance=2.0)
    with pytest.raises(InputError, match="label 1"):
        dit_jax.sample(run, [1])


def test_another_solver(run, unguided):
    samples = dit_jax.sample(run, LABELS, decode=False, guidance=1, solver=Heun(steps=STEPS))
    assert np.abs(samples - unguided).max() > 1e-3
    with pytest.raises(InputError, match="DDPM solves a Gaussian process"):
        dit_jax.sample(run, LABELS, solver=DDPM(steps=3))


def test_a_gaussian_process_with_noise_of_its_own_per_sample():
    model = DiT(patch=4, hidden=16, depth=2, heads=2, num_classes=10)
    run = tiny_run(model=model, process=Gaussian(steps=50), sampling=Sampling(DDPM(steps=3)))
    samples = dit_jax.sample(run, LABELS, decode=False)
    assert samples.shape == (5, 8, 8, 1) and np.isfinite(samples).all()
    split = dit_jax.sample(run, LABELS, decode=False, batch_size=2)
    assert_same(split, samples)


def test_latents_without_decoder_are_drawn_and_not_decoded(run, latents):
    """Compiling stops at the decoder: no work is wasted on samples that cannot be shown."""
    cached = dataclasses.replace(
        run, experiment=dataclasses.replace(run.experiment, latents=Cached(VAE()))
    )
    np.testing.assert_array_equal(dit_jax.sample(cached, LABELS, decode=False), latents)
    with pytest.raises(InputError, match="decode=False"):
        dit_jax.sample(cached, LABELS)


def test_nested_labels_are_flattened(run, latents):
    nested = dit_jax.sample(run, np.array([[3, 0], [9, 10]]), decode=False)
    assert_same(nested, latents[:4])
    np.testing.assert_array_equal(check_labels([[1, 2], [3, 4]], 10), [1, 2, 3, 4])
    assert check_labels(np.arange(3), 10).dtype == np.int32
    np.testing.assert_array_equal(check_labels(jnp.arange(3), 10), [0, 1, 2])


@pytest.mark.parametrize("label", [-1, 11, 1000])
def test_a_label_outside_the_classes_is_refused(run, label):
    with pytest.raises(InputError, match=f"label {label} is outside the model's 10 classes"):
        dit_jax.sample(run, [3, label])


@pytest.mark.parametrize("labels", [[], [[]], np.zeros(0, int)])
def test_no_labels_are_refused(run, labels):
    with pytest.raises(InputError, match="no labels"):
        dit_jax.sample(run, labels)


def test_labels_that_are_no_integers_are_refused(run):
    with pytest.raises(InputError, match="1.7"):
        dit_jax.sample(run, [1.7])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(run, batch_size):
    with pytest.raises(InputError, match="batch"):
        dit_jax.sample(run, LABELS, batch_size=batch_size)


@pytest.mark.parametrize(
    ("classes", "row"),
    [(10, range(10)), (3, range(3)), (1000, range(10)), (0, [0] * 8)],
)
def test_preview_labels_are_a_column_a_class(classes, row):
    labels = preview_labels(classes, rows=4)
    np.testing.assert_array_equal(labels, [list(row)] * 4)
    assert check_labels(labels, classes).shape == (4 * len(row),)
