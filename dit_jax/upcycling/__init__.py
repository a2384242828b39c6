"""Upcycling: a trained dense DiT becomes a mixture of experts, to be trained on.

A configuration that trains on takes the model from the upcycled run itself:

    from dit_jax.checkpoint import newest

    checkpoints, step = newest("runs/moe")
    upcycled, _ = checkpoints.experiment(step)
    experiment = dataclasses.replace(
        upcycled, training=Training(...), run=RunFolder("runs/tuned"), init_from="runs/moe"
    )
"""

from dit_jax.upcycling.folder import upcycle
from dit_jax.upcycling.methods import Copy, Method, Noise, Taylor, make_method

__all__ = ["Copy", "Method", "Noise", "Taylor", "make_method", "upcycle"]
