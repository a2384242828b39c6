"""Autoencoders of diffusers with random weights, and the same ones here."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.interop.engine import make_plan, to_jax
from dit_jax.interop.layouts.diffusers_vae import DiffusersVAELayout

LAYOUT = DiffusersVAELayout()
CONFIG = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
}


def make_twin(seed=0, **changes):
    """Returns diffusers' model; all weights are random, biases and norms too."""
    import torch
    from diffusers import AutoencoderKL

    config = CONFIG | changes
    levels = len(config["block_out_channels"])
    torch.manual_seed(seed)
    twin = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **config,
    ).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter) + ("norm" in name))
            elif "to_q" in name or "to_k" in name:
                parameter.mul_(4)  # Else attention is nearly uniform.
    return twin


def state_dict(twin):
    """The twin's tensors as arrays by key."""
    return {key: value.detach().numpy().copy() for key, value in twin.state_dict().items()}


def describe(twin):
    """Returns what the layout reads off the twin's tensors and configuration."""
    shapes = {key: tuple(value.shape) for key, value in twin.state_dict().items()}
    return LAYOUT.describe(shapes, dict(twin.config))


def convert(tensors, found):
    """Carries a state dict into a tree of parameters."""
    shapes = {key: value.shape for key, value in tensors.items()}
    params = {}

    def write(path, layer, value):
        assert layer is None
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value

    plan = make_plan(LAYOUT.entries(found), shapes, found.abstract())
    for _ in to_jax(plan, tensors.__getitem__, write):
        pass
    return jax.tree.map(jnp.asarray, params)


def make_pair(**changes):
    """Returns diffusers' model, the module and its parameters."""
    twin = make_twin(**changes)
    found = describe(twin)
    return twin, found.module, convert(state_dict(twin), found)


def random_params(module, x):
    """Normal values for every parameter; compiling a network's initialisers takes far longer."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


def images(shape=(2, 16, 24, 3), seed=0):
    """Uniform noise in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def latents(shape=(2, 8, 12, 4), seed=0):
    """Normal noise."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def error(value, expected):
    """Largest difference over the largest value expected."""
    assert value.shape == expected.shape
    return np.abs(np.asarray(value) - expected).max() / np.abs(expected).max()
