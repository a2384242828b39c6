"""A stack of equal blocks whose depth is an array axis."""

from typing import Any, Literal

import flax.linen as nn
import jax

from dit_jax.layers.context import Context
from dit_jax.layers.taps import COLLECTION, LAYERS
from dit_jax.parallel.sharding import constrain

Remat = Literal["none", "dots", "full"]

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nn.Module):
    """`depth` blocks run by one `lax.scan`: every parameter has the layer as axis 0.

    Compile time does not grow with depth, and pruning, growing or averaging layers are array
    operations on that axis. What blocks let be tapped has it too (`layers.taps`).

    Attributes:
      block: a module mapping (tokens, context) to (tokens, aux).
      depth: number of layers.
      remat: what the backward pass recomputes: nothing, all but weight matmuls, or everything.
    """

    block: nn.Module
    depth: int
    remat: Remat

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: Context,
        start: int = 0,
        stop: int | None = None,
        block: nn.Module | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs layers `start` to `stop` on tokens [B, N, D].

        Args:
          x: tokens.
          context: what all blocks see.
          start: first layer.
          stop: the layer after the last one.
          block: what runs them in place of the stack's own, with the same parameters.

        Returns:
          The tokens, and the blocks' aux with the layer as axis 0.
        """
        own = self.block.clone(parent=None, name=None)
        block = own if block is None else block

        def init(key: jax.Array) -> Any:
            # Keys are split for the whole depth, so layer i is the same in any sub-range.
            # (A loop, not a batch: collectives of several layers at once have no meaning.)
            keys = jax.random.split(key, self.depth)
            return jax.lax.map(lambda k: own.init(k, x, context)["params"], keys)

        tapped = [COLLECTION] if self.is_mutable_collection(COLLECTION) else []

        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            x = constrain(x, "batch", "tokens", "channels")
            (x, aux), found = block.apply({"params": layer}, x, context, mutable=tapped)
            return x, (aux, found)

        if self.remat != "none":
            body = jax.checkpoint(body, policy=_POLICIES[self.remat], prevent_cse=False)
        layers = self.param("layers", init)
        layers = jax.tree.map(lambda leaf: leaf[start:stop], layers)
        x, (aux, found) = jax.lax.scan(body, x, layers)
        if tapped:
            self.sow(COLLECTION, LAYERS, found[COLLECTION])
        return x, aux
