"""Whole sampling runs from the same noise, in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import DDIM, ClassifierFree, Euler, Sharing
from dit_jax.sampling import make_caching_denoiser, make_denoiser

torch = pytest.importorskip("torch")

from tests.interop import parity  # noqa: E402
from tests.torch_twins import ddt  # noqa: E402
from tests.torch_twins import dit as twins  # noqa: E402
from tests.torch_twins.gaussian_diffusion import GaussianDiffusion  # noqa: E402
from tests.torch_twins.to_jax import to_nchw, to_nhwc  # noqa: E402

SIZES = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 128, "num_heads": 2}
LABEL = np.array([0, 3, 9])
SCALE = 3.0
THREE_CHANNELS = ClassifierFree(SCALE, channels=3)


def noise():
    return np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)


def ours(run, solver, guidance=THREE_CHANNELS, sharing=None):
    """What the converted run samples with its own process and guidance."""

    @jax.jit
    def sample(params, x):
        make = make_denoiser if sharing is None else make_caching_denoiser
        denoise = guidance(make(run.model, run.process, params), run.model.null_condition)
        if sharing is not None:
            denoise = sharing(denoise, solver.evaluations(run.process))
        keys = jax.random.split(jax.random.key(0), len(x))
        return solver(run.process, denoise, x, {"label": jnp.asarray(LABEL)}, keys)

    return sample(run.params, noise())


def guided(twin):
    """The twin under classifier-free guidance, as a function of x [n, ...] and t [n]."""
    label = torch.from_numpy(np.concatenate([LABEL, np.full(3, 10)]))

    def model(x, t):
        with torch.no_grad():
            output = twin.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), label, SCALE)
        return output.chunk(2)[0]

    return model


def test_ddim_of_a_converted_dit(tmp_path):
    twin = ddt.randomise_(twins.DiT(**SIZES, depth=3, num_classes=10), seed=0).eval()
    run = parity.converted(twin, tmp_path, layout="dit")
    start = torch.from_numpy(to_nchw(noise()))
    theirs = GaussianDiffusion("10").ddim_sample_loop(guided(twin), start)
    assert parity.relative_error(ours(run, DDIM(steps=10)), to_nhwc(theirs)) <= 1e-3


def test_euler_of_a_converted_sit_whose_time_runs_the_other_way(tmp_path):
    twin = ddt.randomise_(twins.SiT(**SIZES, depth=3, num_classes=10), seed=0).eval()
    run = parity.converted(twin, tmp_path, layout="sit")
    x, model = torch.from_numpy(to_nchw(noise())), guided(twin)
    for i in range(10):
        x = x + model(x, torch.full((3,), i / 10)) / 10
    assert parity.relative_error(ours(run, Euler(steps=10)), to_nhwc(x)) <= 1e-3


def test_euler_of_a_converted_ddt_whose_encoder_runs_at_every_third_step(tmp_path):
    twin = ddt.DDT(**SIZES, encoder_depth=8, decoder_depth=4, num_classes=10)
    twin = ddt.randomise_(twin, seed=0).eval()
    run = parity.converted(twin, tmp_path, layout="ddt")
    label = torch.from_numpy(np.concatenate([LABEL, np.full(3, 10)]))
    x, s = torch.from_numpy(to_nchw(noise())), None
    with torch.no_grad():
        for i in range(10):
            pair, t = torch.cat([x, x]), torch.full((6,), i / 10)
            output, s = twin(pair, t, label, None if i % 3 == 0 else s)
            given, null = output.chunk(2)
            x = x + (null + SCALE * (given - null)) / 10
    shared = ours(run, Euler(steps=10), ClassifierFree(SCALE), Sharing(every=3))
    assert parity.relative_error(shared, to_nhwc(x)) <= 1e-3
