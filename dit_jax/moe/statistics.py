"""Numbers that a layer keeps about what it sees, moved by rules and not by gradients.

Such a number is a parameter, so that it is saved, averaged and sharded like any other. What it
should be moved by is its gradient, made here; the optimizer subtracts it as it is
(`training.optimizer`), with neither learning rate nor clipping.
"""

import jax
import jax.numpy as jnp

SUFFIX = "_statistic"


@jax.custom_vjp
def moved_by(statistic: jax.Array, step: jax.Array) -> jax.Array:
    """Returns a zero to add to the loss, whose gradient makes training subtract `step`."""
    del statistic, step
    return jnp.zeros(())


moved_by.defvjp(
    lambda statistic, step: (jnp.zeros(()), step),
    lambda step, cotangent: (step * jnp.sign(cotangent), jnp.zeros_like(step)),
)
