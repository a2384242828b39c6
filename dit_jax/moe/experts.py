"""What an expert computes, for all experts at once."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = dict[str, Any]
# dot(x, layer) applies one linear layer {"kernel", "bias"?}, each row by its own expert. A kernel
# of several axes of features gives all of them in a row.
Dot = Callable[[jax.Array, Params], jax.Array]


class Experts(nn.Module):
    """Base of the kinds of experts: parameters, the expert as axis 0, and a function of them."""

    def __call__(self, count: int, width: int) -> Params:
        """Declares the parameters of `count` experts for tokens of `width`."""
        raise NotImplementedError

    def compute(self, params: Params, x: jax.Array, dot: Dot) -> jax.Array:
        """Applies experts to tokens [..., D]; `dot` says which expert a token is at."""
        raise NotImplementedError


class SwiGLUExperts(Experts):
    """Experts silu(gate x) * (value x), without biases, as DiT-MoE's (arXiv 2002.05202).

    Attributes:
      ratio: width of the hidden layer over the width of the tokens; no two-thirds rule.
    """

    ratio: float = 4.0

    @nn.compact
    def __call__(self, count, width):
        hidden = int(self.ratio * width)
        return {
            "gate_value": self.param("gate_value", _layers, count, (width, 2, hidden), False),
            "out": self.param("out", _layers, count, (hidden, width), False),
        }

    def compute(self, params, x, dot):
        gate, value = jnp.split(dot(x, params["gate_value"]), 2, axis=-1)
        return dot(nn.silu(gate) * value, params["out"])


class MlpExperts(Experts):
    """Two-layer perceptrons with tanh-approximated GELU and biases, as ProMoE's and DiT's own.

    Attributes:
      ratio: width of the hidden layer over the width of the tokens.
    """

    ratio: float = 4.0

    @nn.compact
    def __call__(self, count, width):
        hidden = int(self.ratio * width)
        return {
            "fc1": self.param("fc1", _layers, count, (width, hidden), True),
            "fc2": self.param("fc2", _layers, count, (hidden, width), True),
        }

    def compute(self, params, x, dot):
        return dot(nn.gelu(dot(x, params["fc1"]), approximate=True), params["fc2"])


class LinearExperts(Experts):
    """One linear layer each, from zero, as Switch-DiT's (arXiv 2403.09176)."""

    @nn.compact
    def __call__(self, count, width):
        zeros = {"kernel": jnp.zeros((count, width, width)), "bias": jnp.zeros((count, width))}
        return {"linear": self.param("linear", lambda key: zeros)}

    def compute(self, params, x, dot):
        return dot(x, params["linear"])


def _layers(key: jax.Array, count: int, shape: tuple[int, ...], bias: bool) -> Params:
    """Linear layers: weights Xavier uniform, for each expert and each matrix by itself."""
    between = tuple(range(1, len(shape) - 1))
    init = nn.initializers.variance_scaling(
        1.0, "fan_avg", "uniform", in_axis=0, out_axis=-1, batch_axis=between
    )
    kernels = jax.vmap(lambda k: init(k, shape))(jax.random.split(key, count))
    return {"kernel": kernels} | ({"bias": jnp.zeros((count, *shape[1:]))} if bias else {})
