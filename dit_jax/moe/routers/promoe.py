"""ProMoE's two-step router (Wei et al., "Routing Matters in MoE", arXiv 2510.24711)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.moe.routing import Router, Routing, expert_choice, token_choice


class ProMoERouter(Router):
    """Samples without a condition have an expert of their own; the others' tokens meet prototypes.

    A token's score for an expert is the cosine between it and the expert's prototype, and the
    weight of the experts it takes is that cosine as it is.

    Attributes:
      experts: experts with a prototype; the unconditional one comes after them.
      top_k: experts a token.
      contrast: coefficient of the routing contrastive loss.
      temperature: of that loss.
    """

    experts: int = 12
    top_k: int = 1
    contrast: float = 1.0
    temperature: float = 0.07

    @property
    def count(self):
        return self.experts + 1

    @property
    def chosen(self):
        return self.top_k

    @nn.compact
    def __call__(self, x, context):
        x, cosines, prototypes = _similarity(self, x)
        weights, experts = token_choice(cosines, self.top_k)
        members = jax.nn.one_hot(experts, self.experts)
        members = members.reshape(*x.shape[:2], self.top_k, self.experts).sum(2)
        loss = contrastive_loss(
            x.reshape(-1, x.shape[-1]),
            prototypes,
            (members * context.conditional[:, None, None]).reshape(-1, self.experts),
            self.temperature,
        )
        # A sample without a condition fills its tokens' first slots, with weight 1.
        first = jnp.arange(weights.shape[1]) % self.top_k == 0
        weights = jnp.where(context.conditional[:, None], weights, first.astype(jnp.float32))
        other = jnp.where(first, self.experts, self.count)
        experts = jnp.where(context.conditional[:, None], experts, other.astype(jnp.int32))
        routing = Routing(weights, experts, None, self.count)
        return routing, {"losses": {"contrast": self.contrast * loss}}


class ProMoEExpertChoiceRouter(Router):
    """ProMoE's router whose experts choose: each takes the N k / E tokens of a sample nearest it.

    Attributes:
      experts: experts with a prototype; the unconditional one comes after them.
      top_k: experts a token, on average.
      contrast: coefficient of the routing contrastive loss.
      temperature: of that loss.
    """

    experts: int = 12
    top_k: int = 1
    contrast: float = 1.0
    temperature: float = 0.07

    @property
    def count(self):
        return self.experts + 1

    @property
    def chosen(self):
        return self.top_k

    @nn.compact
    def __call__(self, x, context):
        batch, tokens = x.shape[:2]
        x, cosines, prototypes = _similarity(self, x)
        taken = max(1, min(int(tokens / self.experts * self.top_k), tokens))
        chosen = expert_choice(cosines, taken)
        members = jnp.zeros((batch, tokens, self.experts))
        sample = jnp.arange(batch)[:, None]
        members = members.at[sample, chosen.tokens, chosen.experts].set(1)
        losses = jax.vmap(contrastive_loss, in_axes=(0, None, 0, None))(
            x, prototypes, members, self.temperature
        )
        samples = context.conditional.sum().clip(1)
        loss = jnp.sum(jnp.where(context.conditional, losses, 0)) / samples
        slots = max(tokens, chosen.experts.shape[1])
        conditional = context.conditional[:, None]
        alone = jnp.arange(slots) < tokens
        routing = Routing(
            jnp.where(conditional, _pad(chosen.weights, slots, 0), alone.astype(jnp.float32)),
            jnp.where(
                conditional,
                _pad(chosen.experts, slots, self.count),
                jnp.where(alone, self.experts, self.count),
            ),
            jnp.where(conditional, _pad(chosen.tokens, slots, 0), jnp.arange(slots) % tokens),
            self.count,
        )
        return routing, {"losses": {"contrast": self.contrast * loss}}


def contrastive_loss(
    x: jax.Array, prototypes: jax.Array, members: jax.Array, temperature: float
) -> jax.Array:
    """Pulls each prototype to the mean of its tokens, away from the others' means.

    Cross-entropy over the cosines between prototypes (rows) and means (columns) over the
    temperature. Clusters without a token take no part, and fewer than two give zero.

    Args:
      x: tokens [N, D] float32.
      prototypes: [E, D].
      members: whether each token belongs to each prototype, [N, E].
      temperature: divides the cosines.
    """
    counts = members.sum(0)
    valid = counts > 0
    means = (members.T @ x) / counts.clip(1)[:, None]
    logits = _unit(prototypes) @ _unit(means).T / temperature
    # Rows that take no part are made finite, so that their gradient is zero and not undefined.
    logits = jnp.where(valid[None] | ~valid[:, None], logits, -jnp.inf)
    rows = -jnp.diagonal(jax.nn.log_softmax(logits, axis=-1))
    mean = jnp.sum(jnp.where(valid, rows, 0)) / valid.sum().clip(1)
    return jnp.where(valid.sum() > 1, mean, 0.0)


def _similarity(router: Router, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    normal = nn.initializers.normal(0.02)
    prototypes = router.param("prototypes", normal, (router.experts, x.shape[-1]))
    x = x.astype(jnp.float32)
    return x, _unit(x) @ _unit(prototypes).T, prototypes


def _unit(x: jax.Array) -> jax.Array:
    # The square is kept from zero inside the root, where its gradient would be infinite.
    squares = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def _pad(x: jax.Array, slots: int, value: float) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, slots - x.shape[1])), constant_values=value)
