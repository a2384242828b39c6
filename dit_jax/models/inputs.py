"""One example's inputs, to initialise a model or to ask for its shapes."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def example_inputs(shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """Returns a key, x [1, h, w, c], t [1] and a condition, for `model.init`."""
    label = jnp.zeros((1,), jnp.int32)
    return jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros((1,)), {"label": label}


@functools.lru_cache(maxsize=1)  # What asks once asks again: for counts, places, FLOPs.
def abstract_parameters(model: nn.Module, shape: tuple[int, int, int]) -> Any:
    """Returns the shapes of a model's parameters for samples [h, w, c], and makes none."""
    return jax.eval_shape(model.init, *example_inputs(shape))["params"]
