"""The training loss on images that were not trained on."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dit_jax.diffusion import Process
from dit_jax.errors import InputError
from dit_jax.latents import Latents
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import Run


def held_out_loss(run: Run, count: int, batch_size: int, seed: int) -> float:
    """Mean loss of the process over the first test images; no auxiliary losses, no label dropout.

    Noise and times depend on the seed, the image and the batch size, so runs of one process are
    compared on the same problems.

    Args:
      run: what to measure.
      count: images of the test split, at most; a last batch that is not full is left out.
      batch_size: images at once.
      seed: seed of noise and times.

    Raises:
      InputError: the data has no test split to open, or no image is asked for.
    """
    records = run.experiment.data.open("test")
    batch_size = min(batch_size, count, len(records))
    if batch_size < 1:
        raise InputError(f"{count} held-out images: it must be at least 1")
    frozen = run.latents.load()
    losses = []
    for start in range(0, min(count, len(records)) - batch_size + 1, batch_size):
        batch = [records[i] for i in range(start, start + batch_size)]
        images = np.stack([record["image"] for record in batch])
        labels = np.array([record["label"] for record in batch], np.int32)
        inputs = images, labels, np.int32(start)
        losses.append(_loss(run.model, run.process, run.latents, seed, run.params, frozen, *inputs))
    return float(np.mean(losses))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _loss(
    model: nn.Module,
    process: Process,
    latents: Latents,
    seed: int,
    params: Any,
    frozen: Any,
    images: jax.Array,
    labels: jax.Array,
    start: jax.Array,
) -> jax.Array:
    x0 = latents.encode(frozen, key_for(seed, start, Purpose.ENCODE), images)
    noise = jax.random.normal(key_for(seed, start, Purpose.NOISE), x0.shape)
    t = process.sample_time(key_for(seed, start, Purpose.TIME), len(x0))
    x = process.corrupt(x0, noise, t)
    output = model.apply({"params": params}, x, process.model_time(t), {"label": labels})
    return process.loss(output.prediction, x0, noise, t)[0].mean()
