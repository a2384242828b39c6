"""Class labels as vectors, dropped at random for classifier-free guidance."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.errors import InputError


def drop_labels(key: jax.Array, label: jax.Array, rate: float, null: int) -> jax.Array:
    """Replaces each label [B] by `null` with probability `rate`."""
    drop = jax.random.uniform(key, label.shape) < rate
    return jnp.where(drop, null, label)


class LabelEmbedder(nn.Module):
    """A table of num_classes + 1 vectors; the last one is the null label.

    Attributes:
      num_classes: number of classes; the null label is `num_classes`.
      hidden: width of the result.
      dropout: probability that a label becomes the null label in training (arXiv 2207.12598).
    """

    num_classes: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, label: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps labels [B] int32 to vectors [B, hidden]; draws from the `dropout` key if `train`.

        Also returns the labels [B] that were embedded, those that were dropped as null labels.
        """
        if train and self.dropout > 0:
            label = drop_labels(self.make_rng("dropout"), label, self.dropout, self.num_classes)
        normal = nn.initializers.normal(0.02)
        table = nn.Embed(self.num_classes + 1, self.hidden, embedding_init=normal, name="table")
        return table(label), label


def add_label(
    c: jax.Array, condition: dict[str, Any], num_classes: int, dropout: float, train: bool
) -> tuple[jax.Array, jax.Array]:
    """Adds the embedded label to a condition vector [B, D] of the calling module.

    Nothing is added for an unconditional model, `num_classes` 0.

    Returns:
      The vector, and whether each sample's label is a class, [B] bool: not the null label, nor
      dropped. An unconditional model tells no samples apart: all are True.

    Raises:
      InputError: there is no label.
    """
    if not num_classes:
        return c, jnp.ones(len(c), bool)
    if "label" not in condition:
        raise InputError(
            f"this model has {num_classes} classes and was called without 'label': "
            f"pass {{'label': int32 [B]}}, or set num_classes=0"
        )
    embed = LabelEmbedder(num_classes, c.shape[-1], dropout, name="label_embed")
    vector, label = embed(condition["label"], train)
    return c + vector, label != num_classes


def null_label(condition: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Returns the condition with the null label in place of every label."""
    if not num_classes:
        return condition
    return condition | {"label": jnp.full_like(condition["label"], num_classes)}
