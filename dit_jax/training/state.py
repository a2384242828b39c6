"""The training state: everything that a step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dit_jax.parallel.sharding import Layout


class TrainState(flax.struct.PyTreeNode):
    """One pytree.

    Attributes:
      step: optimizer steps taken, int32 scalar.
      params: parameters, float32.
      opt_state: the optimizer's state.
      ema: decay -> averaged parameters, float32.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema: dict[str, Any]


def new_state(
    params: Any, optimizer: optax.GradientTransformation, decays: tuple[float, ...]
) -> TrainState:
    """Returns the state before the first step; averages start as exact copies."""
    ema = {str(decay): jax.tree.map(jnp.copy, params) for decay in decays}
    return TrainState(jnp.int32(0), params, optimizer.init(params), ema)


def averaged(decay: float, average: Any, params: Any) -> Any:
    """An EMA after one more step."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def state_shardings(
    layout: Layout, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """Shards moments and averages as their parameters and over replicas; the rest lies whole."""
    params, beside = layout.parameters(abstract.params), layout.moments(abstract.params)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        beside,
        transform_non_params=lambda _: layout.replicated,
    )
    return TrainState(layout.replicated, params, moments, dict.fromkeys(abstract.ema, beside))


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns the abstract tree whose leaves also say where they lie."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
