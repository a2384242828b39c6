import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.parallel.depthwise import depthwise
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, use_layout


def operands():
    rng = np.random.default_rng(0)
    shapes = (8, 4, 5, 8), (3, 3, 1, 8)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def loss(images, kernel):
    return jnp.sin(depthwise(images, kernel, "mlp")).sum()


def test_equals_a_loop():
    images, kernel = operands()
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    wanted = sum(padded[:, i : i + 4, j : j + 5] * kernel[i, j] for i, j in np.ndindex(3, 3))
    np.testing.assert_allclose(depthwise(images, kernel, "mlp"), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mesh", [{"data": 2, "tensor": 4}, {"fsdp": 4, "tensor": 2}, {"data": 8}])
def test_gradients_over_devices_are_those_of_one(mesh):
    images, kernel = operands()
    here = Layout(Parallel(**{"data": 1, **mesh}).mesh())
    placed = jax.device_put(images, here.batch)

    def divided(*args):
        with use_layout(here):
            return jax.grad(loss, argnums=(0, 1))(*args)

    found = jax.jit(divided)(placed, jax.device_put(kernel, here.replicated))
    wanted = jax.jit(jax.grad(loss, argnums=(0, 1)))(images, kernel)
    for actual, right in zip(found, wanted):
        np.testing.assert_allclose(actual, right, rtol=1e-5, atol=1e-5)
