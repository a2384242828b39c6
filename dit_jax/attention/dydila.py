"""DyDiLA: linear attention of the differences between tokens and what is redundant in them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.attention.linear import focus
from dit_jax.attention.mixer import TokenMixer
from dit_jax.kernels.linear_attention import linear_attention
from dit_jax.parallel.sharding import on_each_device


@TokenMixer.register
class DyDiLA(nn.Module):
    """Dynamic differential linear attention (arXiv 2601.13683), as far as it is public.

    A token's redundancy q' is q times a matrix that the token chooses; its feature map is one of
    several that it chooses as well; and attention is linear in phi(q) - lambda phi'(q'), and in
    the same of the keys:

        o = qd (kd^T v) / (qd . sum kd)
        qd = phi(q) - lambda phi'(q')
        kd = phi(k) - lambda phi'(k')

    There is no public code. From the paper are the argmax over a linear router, the shared form of
    the projectors' and the feature maps' choice, and the difference. This library's own reading:

    * Routers and projectors read q and k, where the paper's read the token: a token mixer sees
      nothing else. A router looks at all heads, and a projector maps each head to itself.
    * A choice passes gradients straight through, as if the softmax had been taken.
    * The feature maps are the focused ReLU of FLatten (arXiv 2308.00442) at several powers.
    * phi' is chosen from q' and phi from q, by routers of their own.
    * lambda is one number a head, the same for q and k, and starts at zero: the module starts with
      no difference.
    * A difference below zero counts as zero, so weights and denominators stay positive.

    With one projector, one power of 1 and lambda = 0 it is `LinearAttention`.

    Attributes:
      projectors: number of projectors of q, and of k, to choose from.
      powers: powers of the feature maps to choose from.
    """

    projectors: int = 4
    powers: tuple[float, ...] = (1.0, 3.0)

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, ...]
    ) -> jax.Array:
        """Mixes q, k, v [B, N, H, Dh] as a `TokenMixer` does."""
        del grid
        strength = self.param("lambda", nn.initializers.zeros, (v.shape[2],))
        strength = strength.astype(v.dtype)[:, None]
        q = self._features(q, "q") - strength * self._redundancy(q, "q")
        k = self._features(k, "k") - strength * self._redundancy(k, "k")
        # The kernel's own ReLU is what makes a negative difference zero.
        attend = functools.partial(linear_attention, eps=1e-8)
        return on_each_device(attend, "batch", None, "mixed_heads", None)(q, k, v)

    def _redundancy(self, x: jax.Array, name: str) -> jax.Array:
        _, _, heads, width = x.shape
        shape = (self.projectors, heads, width, width)
        init = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=2, out_axis=3, batch_axis=(0, 1)
        )
        projectors = self.param(f"{name}_projectors", init, shape).astype(x.dtype)
        choice = self._choose(x, self.projectors, f"{name}_projector_router")
        # All are applied and one is kept: they are small beside the rest of a block.
        projected = jnp.einsum("bnp,bnhd,phde->bnhe", choice, x, projectors)
        return self._features(projected, f"{name}_redundancy")

    def _features(self, x: jax.Array, name: str) -> jax.Array:
        choice = self._choose(x, len(self.powers), f"{name}_power_router")
        maps = jnp.stack([focus(x, power) for power in self.powers], axis=2)
        return jnp.einsum("bnp,bnphd->bnhd", choice, maps)

    def _choose(self, x: jax.Array, options: int, name: str) -> jax.Array:
        """One-hot choices [B, N, options] whose gradients are the softmax's."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
        router = self.param(name, init, (*x.shape[2:], options))
        logits = jnp.einsum("bnhd,hdp->bnp", x.astype(jnp.float32), router)
        soft = jax.nn.softmax(logits)
        hard = jax.nn.one_hot(logits.argmax(-1), options)
        return (hard + (soft - jax.lax.stop_gradient(soft))).astype(x.dtype)
