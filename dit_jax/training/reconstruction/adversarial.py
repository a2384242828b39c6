"""The losses of a decoder and its discriminator against each other (RAE, arXiv 2510.11690)."""

import jax
import jax.numpy as jnp

_EPS = 1e-6
_LIMIT = 1e4


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Hinge loss of logits of any shape: half of relu(1 - real) + relu(1 + fake), averaged."""
    return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2


def generator_loss(fake: jax.Array) -> jax.Array:
    """What a decoder makes small: minus the mean logit of what it decoded."""
    return -fake.mean()


def adaptive_weight(
    features: jax.Array, reconstruction: jax.Array, adversarial: jax.Array
) -> jax.Array:
    """Balance of two losses by their gradients at the last layer (VQGAN, arXiv 2012.09841, eq. 7).

    That layer is linear, so its weights' gradient is its input times the gradient of its output.

    Args:
      features: input of the layer [B, N, D].
      reconstruction: gradient of the reconstruction's loss at its output [B, N, P].
      adversarial: gradient of the adversarial loss there.

    Returns:
      |of reconstruction| / (|adversarial| + 1e-6), at most 1e4, a constant to all gradients.
    """

    def norm(slope: jax.Array) -> jax.Array:
        gradient = jnp.einsum("bnd,bnp->dp", features, slope, precision="highest")
        return jnp.sqrt(jnp.square(gradient).sum())

    ratio = norm(reconstruction) / (norm(adversarial) + _EPS)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0, _LIMIT))


def quantised(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as 8 bits would keep them, so that rounding tells nobody what is real."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5) / 127.5 - 1
