"""What the tests of diffusion share: an exact denoiser, and a model that exists twice."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.solvers.solver import normal_like

MEAN, STD = 0.3, 0.5


def jit(function):
    """`jax.jit` that optimises less, and so compiles random numbers in a fifth of the time."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def marginal(process, t):
    """Mean and std of a noised sample at `t`, where data is normal(MEAN, STD)."""
    c = process.coefficients(t)
    return c.alpha * MEAN, jnp.sqrt((c.alpha * STD) ** 2 + c.sigma**2)


def exact_denoiser(process):
    """The best possible model of normal(MEAN, STD) data, in the process' units."""

    def denoise(x, t, condition):
        del condition
        c = process.coefficients(t)
        mean, std = marginal(process, t)
        noise = c.sigma * (x - mean) / std**2
        x0 = MEAN + c.alpha * STD**2 * (x - mean) / std**2
        if process.prediction == "velocity":
            return c.d_alpha * x0 + c.d_sigma * noise
        return {"noise": noise, "x0": x0, "score": -(x - mean) / std**2}[process.prediction]

    return denoise


def model(xp, x, t, weight):
    """A smooth function of x and t, in NumPy, JAX or torch; `weight` breaks channels' symmetry."""
    return 0.6 * xp.tanh(x * weight + 2 * t) + 0.3 * x + 0.2 * xp.cos(3 * t)


def jax_model(channels, outputs=1):
    """The model as (x [B, H, W, C], t) -> [B, H, W, outputs * C]; a second output is bounded."""
    weight = jnp.linspace(0.5, 1.5, channels)

    def run(x, t):
        out = model(jnp, x, t, weight)
        return out if outputs == 1 else jnp.concatenate([out, jnp.tanh(out)], axis=-1)

    return run


def torch_model(channels, outputs=1, scale=1.0):
    """The model as (x [B, C, H, W], t [B]) -> [B, outputs * C, H, W]; t is scaled first."""
    import torch

    def run(x, t):
        t = (t.to(x.dtype) * scale).reshape(-1, 1, 1, 1)
        weight = torch.linspace(0.5, 1.5, channels, dtype=x.dtype).reshape(1, -1, 1, 1)
        out = model(torch, x, t, weight)
        return out if outputs == 1 else torch.cat([out, torch.tanh(out)], dim=1)

    return run


def start(batch=2, size=(2, 3), channels=4, seed=0):
    """Noise and keys of so many samples."""
    key = jax.random.key(seed)
    x = jax.random.normal(key, (batch, *size, channels))
    return x, jax.random.split(jax.random.key(seed + 1), batch)


_normal_like = jax.jit(normal_like)


def step_noises(keys, x, count):
    """The noise of each step, [count, B, C, H, W], as the solvers draw it."""
    noises = [_normal_like(keys, x, step) for step in range(count)]
    return np.moveaxis(np.float64(noises), -1, 2)


def to_nchw(x):
    """[B, H, W, C] to [B, C, H, W] in float64, in which the twins then compute."""
    return np.moveaxis(np.float64(x), -1, 1)


def relative_error(actual, expected_nchw):
    """Largest difference over the largest value."""
    expected = np.moveaxis(np.asarray(expected_nchw), 1, -1)
    assert actual.shape == expected.shape and np.isfinite(expected).all()
    return np.abs(actual - expected).max() / np.abs(expected).max()
