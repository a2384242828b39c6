"""Products of row groups with a matrix each: an MoE layer's experts.

On a CPU the loop of `blocked.py`; elsewhere `jax.lax.ragged_dot`, which is a Mosaic kernel on TPUs.
"""

import functools
from collections.abc import Callable

import jax

from dit_jax.kernels.grouped_matmul import blocked, ragged

__all__ = ["grouped_matmul"]


def grouped_matmul(
    x: jax.Array, kernels: jax.Array, sizes: jax.Array, exact: bool = False
) -> jax.Array:
    """Multiplies each group of rows by its own matrix.

    Args:
      x: rows [R, D], group after group.
      kernels: a matrix a group, [E, D, F].
      sizes: rows of each group, [E] int32; their sum is at most R.
      exact: their sum is R, so that nothing has to be set to zero.

    Returns:
      [R, F] in the dtype of `x`, accumulated in float32; rows after the last group are zero.
    """
    if exact and len(kernels) == 1:  # Of all rows: a plain product, which compilers know best.
        return x @ kernels[0]
    return _grouped_matmul(x, kernels, sizes, exact)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(x, kernels, sizes, exact):
    return _product(exact)(x, kernels, sizes)


def _forward(x, kernels, sizes, exact):
    return _grouped_matmul(x, kernels, sizes, exact), (x, kernels, sizes)


def _backward(exact, saved, dy):
    x, kernels, sizes = saved
    dx = _product(exact)(dy, kernels.swapaxes(1, 2), sizes)
    return dx, _outer_product(x, dy, sizes).astype(kernels.dtype), None


# The platform that is lowered for decides, not the one that runs: programs for TPUs are compiled on
# machines that have none. Neither product can be batched as it is, so vmap takes them in turn.
@functools.cache
def _product(exact: bool) -> Callable[..., jax.Array]:
    by_kernel = functools.partial(ragged.product, exact=exact)

    @jax.custom_batching.sequential_vmap
    def product(*args: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(*args, cpu=blocked.product, default=by_kernel)

    return product


@jax.custom_batching.sequential_vmap
def _outer_product(*args: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(
        *args, cpu=blocked.outer_product, default=ragged.outer_product
    )


_grouped_matmul.defvjp(_forward, _backward)
