"""Twins of the frozen networks with random weights, and the same networks here."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.interop.parity import relative_error
from tests.latents.rae.encoder_helpers import converted
from tests.torch_twins.rae_losses import LPIPS, Dino, randomise_
from tests.torch_twins.to_jax import to_nchw, to_nhwc

WIDTHS = (4, 6, 6, 8, 8)
DINO = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 128,
    "num_heads": 2,
    "mlp_ratio": 1.5,
    "depth": 3,
    "key_depths": (0, 1, 2),
}


def lpips_twin():
    return randomise_(LPIPS(WIDTHS), seed=0).eval()


def dino_twin():
    twin = randomise_(Dino(**DINO), seed=0).eval()
    with torch.no_grad():
        # Tokens that differ, for attention to have something to choose from.
        twin.pos_embed.mul_(5)
    return twin


def through_conversion(twin, folder):
    """The module of a twin and its parameters."""
    torch.save(twin.state_dict(), folder / "model.pt")
    return converted(folder / "model.pt", folder / "run")


def images(seed, shape=(2, 16, 16, 3)):
    """Uniform noise in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def dino_errors(twin, module, params):
    """Relative errors of all taps and of the gradient of their weighted sum."""
    x = images(0)
    inside = torch.tensor(to_nchw(x), requires_grad=True)
    theirs = torch.stack(twin(inside)).transpose(2, 3)
    weight = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32)
    (theirs * torch.tensor(weight)).sum().backward()

    @jax.jit
    def ours(params, x):
        def taps(x):
            normalised = ((x + 1) / 2 - jnp.array(module.mean)) / jnp.array(module.std)
            return jnp.stack(module.apply({"params": params}, normalised))

        found, pull_back = jax.vjp(taps, x)
        return found, pull_back(jnp.asarray(weight))[0]

    found, slope = ours(params, x)
    taps = max(relative_error(*pair) for pair in zip(found, theirs.detach()))
    return taps, relative_error(slope, to_nhwc(inside.grad))


def lpips_errors(twin, distance, params):
    """Relative errors of the distances and of their gradients with respect to both images."""
    pair = images(0, (2, 3, 24, 16, 3))
    inside = [torch.tensor(to_nchw(x), requires_grad=True) for x in pair]
    theirs = twin(*inside)
    theirs.sum().backward()

    @jax.jit
    def ours(params, pair):
        found, pull_back = jax.vjp(lambda pair: distance(params, *pair), pair)
        return found, pull_back(jnp.ones(len(found)))[0]

    found, slopes = ours(params, pair)
    gradients = [relative_error(s, to_nhwc(x.grad)) for s, x in zip(slopes, inside)]
    return relative_error(found, theirs.detach()), max(gradients)
