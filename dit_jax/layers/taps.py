"""What a forward pass can be asked for besides its output: Flax's own intermediates.

    output, tapped = model.apply(variables, x, t, condition, mutable=[COLLECTION])

A module lets a value be tapped by `self.sow`, which does nothing unless the caller asked; a `Stack`
gives what its blocks sowed with the layer as axis 0. So no model has a flag for it, and a program
that taps nothing has no trace of it.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

# Flax leaves this collection out of `init`.
COLLECTION = "intermediates"
LAYERS = "layers"
MIXED = "mixed"


def attention_outputs(tapped: dict[str, Any], every: int = 1) -> jax.Array:
    """What attention gave to its output projection, heads side by side: [L, B, N, D].

    Args:
      tapped: the second result of a model's `apply`, asked for `COLLECTION`.
      every: takes the first layer and every so many after it, of each stack; stacks by name.
    """
    stacks = tapped[COLLECTION]
    # A stack may have run in several ranges of layers.
    whole = [jnp.concatenate([_in_order(r) for r in stacks[s][LAYERS]]) for s in sorted(stacks)]
    return jnp.concatenate([layers[::every] for layers in whole])


def _in_order(layers: Any) -> jax.Array:
    """Of a range of layers [l, B, N, D]; where kinds of blocks take turns, a group has several."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(layers):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if f"/{MIXED}/" in name:
            block = re.search(r"blocks_(\d+)/", name)
            found[int(block[1]) if block else 0] = leaf
    grouped = jnp.stack([found[block] for block in sorted(found)], axis=1)
    return grouped.reshape(-1, *grouped.shape[2:4], grouped.shape[4] * grouped.shape[5])
