"""Switch-DiT: experts that noise levels share (Park et al., arXiv 2403.09176)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from optax.assignment import hungarian_algorithm

from dit_jax.errors import InputError
from dit_jax.layers.context import Context
from dit_jax.layers.mlp import Mlp, SwiGLU
from dit_jax.layers.timestep import TimestepEmbedder
from dit_jax.models.dit import DiT
from dit_jax.moe import LinearExperts, MoE
from dit_jax.moe.routers import SwitchRouter

# Exponent of the diffusion prior's windows: most noise levels share the first units.
_ALPHA = 4.0
_EPS = 1e-6


class SwitchBlock(nn.Module):
    """A block on tokens that experts of the noise level have masked; the rest passes by.

    Attributes:
      block: maps (tokens, context) to (tokens, aux).
      moe: the mask, less one.
    """

    block: nn.Module
    moe: MoE

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        """Maps tokens [B, N, D] to tokens [B, N, D] and the mask's aux."""
        excess, aux = self.moe(x, context)
        y, _ = self.block(x + x * excess, context)
        return y - x * excess, aux


class SwitchDiT(DiT):
    """DiT whose blocks are switched by the time, on a discrete process.

    Attributes:
      experts: experts of a block.
      top_k: experts that a noise level takes.
      prior: coefficient of the diffusion prior loss.
      timesteps: number of noise levels; the model's own clock counts them from 0.
    """

    experts: int = 3
    top_k: int = 2
    prior: float = 1.0
    timesteps: int = 1000

    def __call__(self, x, t, condition, train=False):
        output = super().__call__(x, t, condition, train)
        if not train:
            return output
        gates = output.aux["gates"].swapaxes(0, 1)
        loss = diffusion_prior_loss(gates, self._all_gates(), t.astype(jnp.int32), self.top_k)
        losses = output.aux.get("losses", {}) | {"diffusion_prior": self.prior * loss}
        return output._replace(aux=output.aux | {"losses": losses})

    def block(self):
        if not isinstance(self.ffn, Mlp | SwiGLU):
            raise InputError("Switch-DiT's blocks have a dense channel mixer: set ffn to one")
        router = SwitchRouter(self.experts, self.top_k, parent=None)
        return SwitchBlock(
            super().block(), MoE(router, LinearExperts(parent=None), parent=None), parent=None
        )

    def active_share(self, path):
        return self.top_k / self.experts

    def _all_gates(self) -> jax.Array:
        """Gates of every noise level, [T, depth, E]; nothing is learned through them."""
        params = jax.lax.stop_gradient(self.variables["params"])
        embed = TimestepEmbedder(self.hidden, self.time_features, parent=None)
        time = embed.apply({"params": params["time_embed"]}, jnp.arange(self.timesteps))
        gate = params["blocks"]["layers"]["moe"]["router"]["gate"]
        return jax.nn.softmax(
            jnp.einsum("td,lde->tle", nn.silu(time), gate["kernel"]) + gate["bias"]
        )


def diffusion_prior_loss(
    gates: jax.Array, all_gates: jax.Array, t: jax.Array, top_k: int
) -> jax.Array:
    """Jensen-Shannon divergence between the gates of all layers and a prior over noise levels.

    The prior gives each level a window of the units (experts of all layers), which slides with the
    level, so that near levels share units. Which unit of the prior is which expert is decided by
    matching, over all levels, the prior's windows with the experts that are selected now. (Where
    several matchings are equally good, the authors draw one; this takes the first.)

    Args:
      gates: [B, depth, E], probabilities of each layer.
      all_gates: gates of every noise level, [T, depth, E].
      t: noise levels [B] int32.
      top_k: experts that are selected.
    """
    levels, depth, experts = all_gates.shape
    windows = jnp.asarray(prior_windows(levels, depth * experts, top_k / experts))
    chosen = jax.nn.one_hot(jax.lax.top_k(all_gates, top_k)[1], experts).sum(-2)
    chosen = chosen.reshape(levels, -1)
    # Both are 0 or 1: |a - b| = a + b - 2 a b.
    cost = chosen.sum(0)[:, None] + windows.sum(0) - 2 * chosen.T @ windows
    rows, columns = hungarian_algorithm(cost)
    unit = jnp.zeros(len(cost), jnp.int32).at[rows].set(columns)
    target = (windows / windows.sum(1, keepdims=True))[t][:, unit]
    return jensen_shannon(gates.reshape(len(gates), -1) / depth, target).mean()


def prior_windows(levels: int, units: int, share: float) -> np.ndarray:
    """The units each noise level has in the prior: windows [levels, units] of ones."""
    width = int(units * share)
    start = (np.linspace(0, 1, levels) ** _ALPHA * (units - width)).round()
    unit = np.arange(units)
    return ((unit >= start[:, None]) & (unit < start[:, None] + width)).astype(np.float32)


def jensen_shannon(p: jax.Array, q: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence between distributions over the last axis, in nats."""
    middle = jnp.log((p + q) / 2 + _EPS)
    left = (p * (jnp.log(p + _EPS) - middle)).sum(-1)
    right = (q * (jnp.log(q + _EPS) - middle)).sum(-1)
    return (left + right) / 2
