"""Counts which experts a run's model chooses."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion import Process
from dit_jax.layers.patch import patch_grid
from dit_jax.moe import Routing
from dit_jax.moe.dispatch.dispatch import token_of_slot
from dit_jax.progress import track
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import Run


@dataclasses.dataclass(frozen=True)
class ExpertUse:
    """How often each expert was chosen: slots that were used, whether or not they were dropped.

    Attributes:
      times: library times, [T].
      by_time: over all samples and tokens, [L, T, E] int64; L counts layers that have experts.
      by_class: over all times and tokens, [L, classes, E]; empty where the data has no classes.
      without_class: the same samples under the null label, [L, E]; None where there is no such.
      by_position: over all samples and times, [L, rows, columns, E].
    """

    times: np.ndarray
    by_time: np.ndarray
    by_class: np.ndarray
    without_class: np.ndarray | None
    by_position: np.ndarray


@functools.partial(jax.jit, static_argnums=(1, 2))
def expert_use(routing: Routing, samples: int, tokens: int) -> jax.Array:
    """Counts how often each expert takes each token.

    Args:
      routing: of L layers: its leaves are [L, G, S].
      samples: samples in all groups together (B).
      tokens: tokens of a sample (N).

    Returns:
      [L, B, N, E] int32. Slots that are not used do not count.
    """
    members = samples * tokens // routing.experts.shape[1]

    def count(layer: Routing) -> jax.Array:
        chosen = token_of_slot(layer, members), layer.experts
        uses = jnp.zeros((samples * tokens, layer.count), jnp.int32)
        return uses.at[chosen].add(1, mode="drop")  # An unused slot's expert is out of bounds.

    return jax.vmap(count)(routing).reshape(-1, samples, tokens, routing.count)


def measure(
    run: Run,
    images: np.ndarray,
    labels: np.ndarray,
    times: np.ndarray,
    batch_size: int,
    seed: int,
) -> ExpertUse:
    """Noises images to every time and counts which experts the run's model chooses.

    A model that knows a null label runs a second time under it, for `without_class` alone.

    Args:
      run: a run whose model has experts.
      images: [N, H, W, C], as the run's source delivers them.
      labels: class of each, [N].
      times: library times, [T].
      batch_size: images at once.
      seed: of the encoder and the noise.
    """
    count = functools.partial(_count, run.model, run.process, run.params)
    encode, frozen = jax.jit(run.latents.encode), run.latents.load()
    by_sample, by_token, without_class = [], 0, 0
    for start in track(range(0, len(images), batch_size), "counting"):
        rows = slice(start, start + batch_size)
        x0 = encode(frozen, key_for(seed, start, Purpose.ENCODE), images[rows])
        noise = jax.random.normal(key_for(seed, start, Purpose.NOISE), x0.shape)
        condition = {"label": jnp.asarray(labels[rows], jnp.int32)}
        samples, tokens = jax.device_get(count(x0, noise, times, condition))
        by_sample.append(samples)
        by_token += tokens.astype(np.int64)
        if run.model.num_classes:
            null = run.model.null_condition(condition)
            without_class += jax.device_get(count(x0, noise, times, null)[0]).sum((0, 2))
    by_sample = np.concatenate(by_sample, axis=2, dtype=np.int64)
    classes = np.arange(run.experiment.data.num_classes)
    grid = patch_grid(run.shape, run.model.patch)
    return ExpertUse(
        times=times,
        by_time=by_sample.sum(2).swapaxes(0, 1),
        by_class=np.einsum("lne,nc->lce", by_sample.sum(0), labels[:, None] == classes),
        without_class=without_class if run.model.num_classes else None,
        by_position=by_token.reshape(len(by_token), *grid, -1),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _count(
    model: nn.Module,
    process: Process,
    params: Any,
    x0: jax.Array,
    noise: jax.Array,
    times: jax.Array,
    condition: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Counts the use of experts by sample, [T, L, B, E], and by token, [L, N, E]."""
    tokens = math.prod(patch_grid(x0.shape, model.patch))

    def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.broadcast_to(t, (len(x0),))
        x = process.corrupt(x0, noise, t)
        output = model.apply({"params": params}, x, process.model_time(t), condition)
        use = expert_use(output.aux["routing"], len(x0), tokens)
        return use.sum(2), use.sum(1)

    by_sample, by_token = jax.lax.map(at, times)
    return by_sample, by_token.sum(0)


def shares(counts: np.ndarray) -> np.ndarray:
    """Divides counts [..., E] by their sum over experts; NaN where nothing was counted."""
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
