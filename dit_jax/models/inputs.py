"""One example's inputs, to initialise a model or to ask for its shapes."""

import jax
import jax.numpy as jnp


def example_inputs(shape: tuple[int, int, int]) -> tuple[jax.Array, ...]:
    """Returns a key, x [1, h, w, c], t [1] and a condition, for `model.init`."""
    label = jnp.zeros((1,), jnp.int32)
    return jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros((1,)), {"label": label}
