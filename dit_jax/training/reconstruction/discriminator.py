"""What tells real images from decoded ones: trained heads on a frozen network's features.

As in StyleGAN-T (arXiv 2301.09515) and RAE (arXiv 2510.11690).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

# Vectors of the power iterations: state that no gradient trains.
SPECTRAL = "spectral"

# Tokens that the second convolution of a head sees at once.
_KERNEL = 9

# Not in bfloat16, as a TPU multiplies by default.
_einsum = functools.partial(jnp.einsum, precision="highest")


class SpectralConv(nn.Module):
    """A convolution along tokens, which form a ring, of largest singular value about 1.

    Its kernel is divided by an estimate of that value (arXiv 1802.05957). A call in which the
    collection `spectral` is mutable improves the estimate by one power iteration first.

    Attributes:
      features: output channels.
      size: of the kernel, odd.
    """

    features: int
    size: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, L, C] to [B, L, features]."""
        shape = (self.size, x.shape[-1], self.features)
        bound = (self.size * x.shape[-1]) ** -0.5
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)  # noqa: E731
        kernel = self.param("kernel", uniform, shape)
        bias = self.param("bias", uniform, shape[-1:])
        kernel = kernel / self._largest_singular_value(kernel)
        x = jnp.pad(x, [(0, 0), (self.size // 2, self.size // 2), (0, 0)], mode="wrap")
        dimensions = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", None, None, dimensions) + bias

    def _largest_singular_value(self, kernel: jax.Array) -> jax.Array:
        def start(shape: tuple[int, ...]) -> jax.Array:
            return _unit(jax.random.normal(self.make_rng("params"), shape))

        left = self.variable(SPECTRAL, "left", start, kernel.shape[-1:])
        right = self.variable(SPECTRAL, "right", start, kernel.shape[:-1])
        if self.is_mutable_collection(SPECTRAL) and not self.is_initializing():
            fixed = jax.lax.stop_gradient(kernel)
            right.value = _unit(_einsum("kio,o->ki", fixed, left.value))
            left.value = _unit(_einsum("kio,ki->o", fixed, right.value))
        return _einsum("kio,ki,o->", kernel, right.value, left.value)


class DiscriminatorHead(nn.Module):
    """From the features of one layer to a logit a token."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features [B, L, C] to logits [B, L]."""
        x = self._convolve(x, 1, 0)
        x = (self._convolve(x, _KERNEL, 1) + x) * 2**-0.5
        return SpectralConv(1, name="logit")(x)[..., 0]

    def _convolve(self, x: jax.Array, size: int, number: int) -> jax.Array:
        x = SpectralConv(x.shape[-1], size, name=f"conv_{number}")(x)
        return nn.leaky_relu(InstanceNorm(name=f"norm_{number}")(x), 0.2)


class InstanceNorm(nn.Module):
    """Normalises every channel of every sample over its tokens (arXiv 1607.08022)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, L, C] to [B, L, C]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x - x.mean(axis=1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=1, keepdims=True) + self.eps)
        return x * scale + bias


class DiscriminatorHeads(nn.Module):
    """A head for each layer that is looked at; high logits say "real"."""

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> jax.Array:
        """Maps features [B, L, C] of several layers to all their logits, side by side [B, M]."""
        heads = [
            DiscriminatorHead(name=f"head_{i}")(x.astype(jnp.float32))
            for i, x in enumerate(features)
        ]
        return jnp.concatenate(heads, axis=1)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum()), 1e-12)
