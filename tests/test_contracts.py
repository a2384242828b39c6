"""The contracts of docs/design.md, in types with shapes that are checked as programs are traced."""

import functools
import inspect

import beartype
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, Float32, Int32, Shaped, jaxtyped

import dit_jax.attention
import dit_jax.diffusion
import dit_jax.moe.routers
from dit_jax.diffusion import Flow, Gaussian, Process, Solver
from dit_jax.latents import VAE, Pixels
from dit_jax.layers.context import Context
from dit_jax.models import DDT, DiT, DiTDH, PTDiT, SwitchDiT, dit_moe, promoe
from dit_jax.moe.routing import Routing

checked = functools.partial(jaxtyped, typechecker=beartype.beartype)
BATCH, GRID, HEADS, SIZE, WIDTH = 2, (8, 8), 4, 8, 32
TOKENS = GRID[0] * GRID[1]

full, windows = dit_jax.attention.Full, dit_jax.attention.Windows
FIELDS = {"PerLayer": {"first": full(), "layers": 1, "rest": windows((4, 4))}}
TINY = {"hidden": WIDTH, "heads": HEADS, "num_classes": 3}
MODELS = {
    "DiT": DiT(depth=2, **TINY),
    "DiT without variance": DiT(depth=2, learn_sigma=False, **TINY),
    "DDT": DDT(encoder_depth=1, decoder_depth=1, **TINY),
    "DiT-DH": DiTDH(depth=1, wide_hidden=64, wide_depth=1, wide_heads=4, **TINY),
    "DiT-MoE": dit_moe(2, WIDTH, HEADS, 4),
    "ProMoE": promoe(2, WIDTH, HEADS),
    "PT-DiT": PTDiT(depth=2, window=(2, 2), **TINY),
    "Switch-DiT": SwitchDiT(depth=2, **TINY),
}


def concrete(room, base):
    """The classes of a room that can be made: all but the base itself and abstract ones."""
    found = [getattr(room, name) for name in room.__all__]
    kinds = [x for x in found if inspect.isclass(x) and issubclass(x, base) and x is not base]
    return [kind for kind in kinds if not inspect.isabstract(kind)]


@pytest.mark.parametrize("name", sorted(set(dit_jax.attention.__all__) - {"TokenMixer"}))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_mixer_keeps_shape_and_dtype(name, dtype):
    @checked
    def contract(
        q: Shaped[Array, "batch tokens heads size"],
        k: Shaped[Array, "batch tokens heads size"],
        v: Shaped[Array, "batch tokens heads size"],
    ) -> Shaped[Array, "batch tokens heads size"]:
        mixer = getattr(dit_jax.attention, name)(**FIELDS.get(name, {}))
        if isinstance(mixer, dit_jax.attention.PerLayer):
            mixer = mixer.first
        if isinstance(mixer, nn.Module):
            mixed, _ = mixer.init_with_output(jax.random.key(0), q, k, v, GRID)
        else:
            mixed = mixer(q, k, v, GRID)
        assert mixed.dtype == v.dtype
        return mixed

    x = jax.ShapeDtypeStruct((BATCH, TOKENS, HEADS, SIZE), dtype)
    jax.eval_shape(contract, x, x, x)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_predicts_in_the_shape_of_its_input(name):
    model = MODELS[name]

    @checked
    def contract(
        x: Float32[Array, "batch rows columns channels"],
        t: Float32[Array, " batch"],
        label: Int32[Array, " batch"],
    ) -> tuple[Float32[Array, "batch rows columns outputs"], dict]:
        output, _ = model.init_with_output(jax.random.key(0), x, t, {"label": label})
        assert output.prediction.shape[-1] in (x.shape[-1], 2 * x.shape[-1])
        return output.prediction, output.aux

    x = jax.ShapeDtypeStruct((BATCH, 16, 16, 4), jnp.float32)
    t = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    jax.eval_shape(contract, x, t, jax.ShapeDtypeStruct((BATCH,), jnp.int32))


@pytest.mark.parametrize("router", concrete(dit_jax.moe.routers, nn.Module))
def test_a_router_gives_slots_of_groups(router):
    @checked
    def contract(
        x: Float32[Array, "batch tokens width"],
    ) -> tuple[Float32[Array, "groups slots"], Int32[Array, "groups slots"], dict]:
        vector, t = jnp.zeros((BATCH, WIDTH)), jnp.zeros((BATCH,))
        context = Context(vector, t, vector, t > 0, GRID, train=True)
        (routing, aux), _ = router().init_with_output(jax.random.key(0), x, context)
        assert isinstance(routing, Routing)
        assert x.shape[0] % len(routing.experts) == 0
        assert all(loss.shape == () for loss in aux.get("losses", {}).values())
        return routing.weights, routing.experts, aux

    jax.eval_shape(contract, jax.ShapeDtypeStruct((BATCH, TOKENS, WIDTH), jnp.float32))


@pytest.mark.parametrize("kind", concrete(dit_jax.diffusion, Process))
def test_a_process_noises_and_weighs_by_sample(kind):
    process = kind()

    @checked
    def contract(
        x0: Float32[Array, "batch rows columns channels"],
        noise: Float32[Array, "batch rows columns channels"],
        output: Float32[Array, "batch rows columns outputs"],
    ) -> tuple[
        Float[Array, " batch"],
        Float32[Array, "batch rows columns channels"],
        Float32[Array, " batch"],
        dict[str, Float32[Array, ""]],
        Float32[Array, "batch rows columns channels"],
    ]:
        t = process.sample_time(jax.random.key(0), len(x0))
        x = process.corrupt(x0, noise, t)
        loss, metrics = process.loss(output, x0, noise, t)
        return t, x, loss, metrics, process.estimate(x, t, output).x0

    image = jax.ShapeDtypeStruct((BATCH, 8, 8, 3), jnp.float32)
    channels = process.output_channels(3)
    jax.eval_shape(contract, image, image, jax.ShapeDtypeStruct((BATCH, 8, 8, channels), "float32"))


@pytest.mark.parametrize("kind", concrete(dit_jax.diffusion, Solver))
def test_a_solver_ends_in_the_shape_of_its_noise(kind):
    solver = kind()
    process = Gaussian() if issubclass(Gaussian, kind.PROCESS) else Flow()

    @checked
    def contract(
        x: Float32[Array, "batch rows columns channels"], label: Int32[Array, " batch"]
    ) -> Float32[Array, "batch rows columns channels"]:
        def denoise(
            x: Float32[Array, "batch rows columns channels"], t: Float32[Array, ""], condition: dict
        ) -> Float32[Array, "batch rows columns outputs"]:
            return jnp.zeros((*x.shape[:3], process.output_channels(x.shape[-1])))

        keys = jax.random.split(jax.random.key(0), len(x))
        return solver(process, checked(denoise), x, {"label": label}, keys)

    label = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    jax.eval_shape(contract, jax.ShapeDtypeStruct((BATCH, 8, 8, 3), jnp.float32), label)


@pytest.mark.parametrize("latents", [Pixels(), VAE()])
def test_a_latent_space_encodes_images_to_its_shape(latents):
    source = (64, 64, 3)

    @checked
    def contract(
        images: Shaped[Array, "batch height width 3"],
    ) -> Float32[Array, "batch rows columns channels"]:
        pixels = jnp.zeros(images.shape)
        model = getattr(latents, "model", None)
        params = model.init(jax.random.key(0), pixels)["params"] if model else {}
        return latents.encode(params, jax.random.key(0), images)

    images = jax.ShapeDtypeStruct((BATCH, *source), latents.source_dtype)
    encoded = jax.eval_shape(contract, images)
    assert encoded.shape == (BATCH, *latents.shape(source))
