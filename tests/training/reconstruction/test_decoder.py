"""Training a decoder: each step against its written-out meaning, and whole runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_jax
from dit_jax.checkpoint import Checkpoints
from dit_jax.errors import InputError
from dit_jax.latents import RAE
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, place
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import load
from dit_jax.training.loop import train_decoder
from dit_jax.training.reconstruction.augmentation import diff_augment, random_numbers
from dit_jax.training.reconstruction.step import DecoderStep, add_noise, random_crop
from dit_jax.training.reconstruction.trainer import DecoderTrainer
from dit_jax.weights import load_weights
from tests.training.reconstruction import small


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small.save_all(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def setting(weights):
    """An experiment, its frozen networks, a batch, and the state before each of three steps."""
    e = small.experiment(weights, weights / "unused")
    frozen = {
        "encoder": e.latents.load()["encoder"],
        "perceptual": e.perceptual.load(),
        "features": e.adversary.load(),
    }
    images = np.random.default_rng(0).integers(0, 256, (8, *e.data.shape), np.uint8)
    layout = Layout(e.parallel.mesh(jax.devices()[:1]))
    step = jax.jit(DecoderStep(e, e.build_optimizers(), layout))
    state, states, metrics = jax.jit(e.fresh_state)(), [], []
    for _ in range(3):
        states.append(state)
        state, found = step(state, {"image": images}, frozen)
        metrics.append(jax.device_get(found))
    return e, frozen, images, [*states, state], metrics


def written_out(e, frozen, images, state):
    """Losses of the decoder, by its parameters, as RAE's paper has them."""
    step = int(state.step)
    key = lambda purpose: key_for(e.training.seed, step, purpose)  # noqa: E731
    images = random_crop(key(Purpose.CROP), jnp.asarray(images), e.crop)
    real = images / 255.0
    tokens = add_noise(key(Purpose.NOISE), e.latents.tokens(frozen["encoder"], images), e.noise)

    def decode(decoder):
        return e.latents.pixels(e.latents.decoder.apply({"params": decoder}, tokens))

    def reconstruction(decoder):
        x = decode(decoder)
        lpips = e.perceptual(frozen["perceptual"], 2 * x - 1, 2 * real - 1).mean()
        return jnp.abs(x - real).mean() + lpips

    def deceit(decoder):
        numbers = random_numbers(key(Purpose.AUGMENT), len(images))
        x = diff_augment(2 * decode(decoder) - 1, numbers)
        mean, std = (jnp.array(values) for values in (small.DINO.mean, small.DINO.std))
        x = small.DINO.apply({"params": frozen["features"]}, ((x + 1) / 2 - mean) / std)
        heads = {"params": state.params["discriminator"], "spectral": state.params["spectral"]}
        return -e.adversary.heads.apply(heads, x).mean()

    return reconstruction, deceit


def test_the_decoders_loss_is_the_papers(setting):
    e, frozen, images, states, metrics = setting
    state, found = states[2], metrics[2]
    reconstruction, deceit = written_out(e, frozen, images, state)

    @jax.jit
    def both(decoder):
        return jax.value_and_grad(reconstruction)(decoder), jax.value_and_grad(deceit)(decoder)

    (first, slope), (second, other) = both(state.params["decoder"])
    kernels = [np.linalg.norm(tree["pixels"]["kernel"]) for tree in (slope, other)]
    balance = kernels[0] / (kernels[1] + 1e-6)
    np.testing.assert_allclose(found["adversarial"], second, rtol=1e-4)
    np.testing.assert_allclose(found["adaptive_weight"], balance, rtol=1e-3)
    np.testing.assert_allclose(found["loss"], first + 0.75 * balance * second, rtol=1e-3)
    whole = jax.tree.map(lambda a, b: a + 0.75 * balance * b, slope, other)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(whole)))
    np.testing.assert_allclose(found["grad_norm"], norm, rtol=1e-3)


def test_the_discriminator_learns_and_counts_from_its_steps_on(setting):
    *_, states, metrics = setting
    heads = [jax.tree.leaves(state.params["discriminator"]) for state in states]
    same = [all(map(np.array_equal, a, b)) for a, b in zip(heads, heads[1:])]
    assert same == [True, False, False]
    assert [m["adaptive_weight"] > 0 for m in metrics] == [False, False, True]
    assert [m["discriminator_loss"] > 0 for m in metrics] == [False, True, True]
    # Two power iterations a step: one for the decoded images and one for the real ones.
    vectors = [jax.tree.leaves(state.params["spectral"]) for state in states]
    assert [all(map(np.array_equal, a, b)) for a, b in zip(vectors, vectors[1:])] == same


def test_the_average_is_the_decoders(setting):
    _, _, _, states, _ = setting
    assert states[0].ema.keys() == {"0.9"} and states[0].ema["0.9"].keys() == {"decoder"}
    kernel = lambda tree: np.asarray(tree["decoder"]["pixels"]["kernel"])  # noqa: E731
    expected = 0.9 * kernel(states[0].ema["0.9"]) + 0.1 * kernel(states[1].params)
    np.testing.assert_allclose(kernel(states[1].ema["0.9"]), expected, atol=1e-7)


def test_a_mesh_gives_the_numbers_of_one_device(setting):
    e, frozen, images, states, metrics = setting
    layout = Layout(Parallel(data=2, fsdp=4).mesh())
    shardings = e.state_shardings(layout, jax.eval_shape(e.fresh_state))
    step = jax.jit(
        DecoderStep(e, e.build_optimizers(), layout),
        in_shardings=(shardings, layout.batch, layout.replicated),
        out_shardings=(shardings, layout.replicated),
    )
    batch = {"image": place(images, layout.batch)}
    state, found = step(
        place(jax.device_get(states[2]), shardings), batch, place(frozen, layout.replicated)
    )
    for name, value in metrics[2].items():
        # The adaptive weight divides two norms, each a sum in another order.
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)
    kernel = state.params["decoder"]["blocks"]["layers"]["ffn"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_noise_is_of_another_strength_for_each_image():
    tokens = jnp.zeros((200, 20, 20))
    spread = np.asarray(add_noise(jax.random.key(0), tokens, 0.8)).std(axis=(1, 2))
    assert spread.max() < 0.9
    np.testing.assert_allclose(np.quantile(spread, [0.25, 0.5, 0.75]), [0.2, 0.4, 0.6], atol=0.1)
    np.testing.assert_array_equal(add_noise(jax.random.key(0), tokens, 0.0), tokens)


def test_crops_are_parts_of_the_images():
    images = jnp.arange(6 * 9 * 7).reshape(6, 9, 7, 1)
    crops = np.asarray(random_crop(jax.random.key(0), images, 5))
    corners = crops[:, 0, 0, 0] % 63
    assert len(set(corners.tolist())) > 1
    for image, crop, corner in zip(np.asarray(images), crops, corners):
        top, left = divmod(int(corner), 7)
        np.testing.assert_array_equal(crop, image[top : top + 5, left : left + 5])


@pytest.fixture(scope="module")
def run(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_decoder(small.experiment(weights, folder, perceptual=None))
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_log_and_its_grids(run):
    logged = lines(run)
    assert [line["step"] for line in logged if "loss" in line] == [1, 2, 3, 4]
    (measured,) = [line for line in logged if "psnr" in line]
    assert measured["step"] == 4
    assert 0 < measured["psnr"] < 60 and -1 < measured["ssim"] < 1
    assert measured["frechet_distance"] > 0
    assert (run / "samples" / "step_00000004.png").is_file()


def test_a_resumed_run_is_the_same_run(weights, run, tmp_path):
    half = small.experiment(weights, tmp_path, perceptual=None)
    shorter = dataclasses.replace(half, training=dataclasses.replace(half.training, steps=2))
    train_decoder(shorter)
    changes = dataclasses.replace(half.run, allow_changes=True)
    train_decoder(dataclasses.replace(half, run=changes))
    shape = jax.eval_shape(half.fresh_state).params["decoder"]
    ours, theirs = (load_weights(str(path), shape, "decoder") for path in (tmp_path, run))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_trained_decoder_decodes_and_is_trained_on(weights, run, tmp_path):
    rae = RAE(small.ENCODER, str(weights / "encoder"), small.DECODER, decoder_weights=str(run))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    x = rae.encode(rae.load(), jax.random.key(0), jnp.asarray(images))
    assert rae.decode(rae.load_decoder(), x).shape == (2, 16, 16, 3)
    again = small.experiment(weights, tmp_path, perceptual=None)
    again = dataclasses.replace(again, latents=rae)
    state = DecoderTrainer(again).state()
    trained = load_weights(str(run), state.params["decoder"], "decoder")
    jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], trained)
    jax.tree.map(np.testing.assert_array_equal, state.ema["0.9"]["decoder"], trained)


def test_the_first_average_is_the_one_that_decodes(weights, tmp_path):
    training = dit_jax.experiment.Training(steps=1, batch_size=8, ema=(0.9, 0.5))
    changes = {"perceptual": None, "adversary": None, "training": training}
    train_decoder(small.experiment(weights, tmp_path, **changes))
    saved = Checkpoints(str(tmp_path))
    abstract = jax.eval_shape(small.experiment(weights, tmp_path, **changes).fresh_state)
    first = saved.restore(1, {"ema_0.9": abstract.ema["0.9"]})["ema_0.9"]["decoder"]
    found = load_weights(str(tmp_path), abstract.ema["0.9"]["decoder"], "decoder")
    jax.tree.map(np.testing.assert_array_equal, found, first)


def test_a_decoder_is_no_model_to_sample_from(run):
    with pytest.raises(InputError, match="holds a decoder, not a model to sample from"):
        load(str(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 32}, "--crop 32: the images are of 24x24"),
        ({"crop": 12}, "do not divide into the decoder's patches of 8x8"),
        ({"noise": -1.0}, "must not be negative"),
        ({"held_out": 1}, "--held-out 1: measure at least 2"),
        ({"training": dit_jax.experiment.Training(batch_size=8, accumulation=2)}, "accumulation"),
        ({"training": dit_jax.experiment.Training(steps=0)}, "training.steps is 0"),
        ({"data": dit_jax.data.Digits()}, "images of 1 channels and a decoder of 3"),
    ],
)
def test_what_cannot_be_trained_is_refused(weights, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train_decoder(small.experiment(weights, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_batch_divides_over_the_devices(weights, tmp_path):
    e = small.experiment(
        weights, tmp_path / "run", training=dit_jax.experiment.Training(batch_size=9)
    )
    with pytest.raises(InputError, match="a batch of 9 does not divide over 8 devices"):
        train_decoder(e)
