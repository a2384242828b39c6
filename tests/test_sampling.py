"""Samples are a function of the run, the seed, the label and their number."""

import jax
import numpy as np
import pytest

import dit_jax
from dit_jax.diffusion import Autoguidance, ClassifierFree
from dit_jax.errors import InputError
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.mesh import Parallel
from dit_jax.run import Run
from dit_jax.sampling import preview_labels
from tests.training import tiny

LABELS = [3, 3, 7, 0, 10]


def make_run(seed=0, **options):
    """An untrained run whose parameters are all random, so that labels matter."""
    experiment = tiny.experiment("unused", **options)
    key, *inputs = example_inputs(experiment.shape)
    params = experiment.model.init(key, *inputs)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
    return Run(experiment, experiment.shape, 0, jax.tree.unflatten(tree, leaves))


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def latents(run):
    return dit_jax.sample(run, LABELS, decode=False)


def test_images_are_bytes(run):
    images = dit_jax.sample(run, LABELS)
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8


def test_seed_and_label_decide(run, latents):
    np.testing.assert_array_equal(dit_jax.sample(run, LABELS, decode=False), latents)
    assert not np.allclose(dit_jax.sample(run, LABELS, seed=1, decode=False), latents)
    other = dit_jax.sample(run, [3, 4, 7, 0, 10], decode=False)
    assert not np.allclose(other[1], latents[1])
    np.testing.assert_allclose(other[0], latents[0], atol=1e-5)
    assert not np.allclose(latents[0], latents[1])  # The same label, another number.


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_do_not_matter(run, latents, batch_size):
    # Matmuls of another shape may round differently.
    split = dit_jax.sample(run, LABELS, batch_size=batch_size, decode=False)
    np.testing.assert_allclose(split, latents, atol=1e-5)


def test_devices_do_not_matter(run, latents):
    mesh = Parallel().mesh(jax.devices()[:1])
    np.testing.assert_allclose(
        dit_jax.sample(run, LABELS, decode=False, mesh=mesh), latents, atol=1e-5
    )


def test_guidance_as_number_and_as_object(run, latents):
    number = dit_jax.sample(run, LABELS, guidance=3.0, decode=False)
    same = dit_jax.sample(run, LABELS, guidance=ClassifierFree(3.0), decode=False)
    np.testing.assert_array_equal(number, same)
    assert not np.allclose(number, latents)
    np.testing.assert_allclose(number[4], latents[4], atol=1e-5)  # No class: nothing to guide.


def test_autoguidance_needs_its_weak_run(run, latents):
    weak = make_run(seed=1, model__depth=1)
    guided = dit_jax.sample(run, LABELS, guidance=Autoguidance(2.0), weak=weak, decode=False)
    assert not np.allclose(guided, latents)
    with pytest.raises(InputError, match="go together"):
        dit_jax.sample(run, LABELS, guidance=Autoguidance(2.0))
    with pytest.raises(InputError, match="go together"):
        dit_jax.sample(run, LABELS, weak=weak)


@pytest.mark.parametrize("labels", [[11], [-1], []])
def test_labels_outside_the_classes_are_refused(run, labels):
    with pytest.raises(InputError, match="label"):
        dit_jax.sample(run, labels)


def test_an_unconditional_run_has_no_guidance():
    run = make_run(model__num_classes=0, sampling__guidance=None)
    assert dit_jax.sample(run, [0, 0]).shape == (2, 8, 8, 1)
    with pytest.raises(InputError, match="nothing to guide"):
        dit_jax.sample(run, [0, 0], guidance=2.0)


def test_previews_have_a_column_a_class():
    assert preview_labels(3).tolist() == [[0, 1, 2]] * 8
    assert preview_labels(1000).shape == (8, 10)
    assert not preview_labels(0).any()


def test_solver_and_process_must_fit(run):
    from dit_jax.diffusion import DDPM

    with pytest.raises(InputError, match="DDPM solves"):
        dit_jax.sample(run, [1], solver=DDPM())
