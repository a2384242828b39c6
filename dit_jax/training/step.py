"""One training step, a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dit_jax.diffusion import Process
from dit_jax.latents import Latents
from dit_jax.parallel.sharding import Layout, use_layout
from dit_jax.randomness import Purpose, key_for
from dit_jax.training.distillation import Distillation, Taught
from dit_jax.training.state import TrainState, averaged

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[TrainState, Metrics]]


def make_loss(
    model: nn.Module | Taught, process: Process
) -> Callable[..., tuple[jax.Array, Metrics]]:
    """Returns loss(params, example, dropout_key) -> (mean loss, metrics), float32.

    `example` is a pytree of x0 and noise [B, h, w, c], t [B] and the condition.
    """

    def loss(params: Any, example: dict[str, Any], key: jax.Array) -> tuple[jax.Array, Metrics]:
        x0, noise, t = example["x0"], example["noise"], example["t"]
        output = model.apply(
            {"params": params},
            process.corrupt(x0, noise, t),
            process.model_time(t),
            example["condition"],
            train=True,
            rngs={"dropout": key},
        )
        losses, metrics = process.loss(output.prediction, x0, noise, t)
        extra, measured = _auxiliary(output.aux)
        return losses.mean() + extra, metrics | measured

    return loss


def make_step(
    model: nn.Module,
    process: Process,
    latents: Latents,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int,
    seed: int,
    layout: Layout,
    distillation: Distillation | None = None,
    teacher: nn.Module | None = None,
) -> Step:
    """Returns step(state, batch, frozen, teacher_params=None) -> (state, metrics), to be jitted.

    `frozen` is what `latents.load()` gave, and `teacher_params` are those of `teacher`, from which
    the model then learns what `distillation` says: parameters that are used and not trained.

    Everything random is a function of (seed, state.step), and is drawn for the whole batch before
    it is cut up, so that neither devices nor accumulation change it (but label dropout, which the
    model draws for each part).
    """

    def draw(step: jax.Array, batch: Batch, frozen: Any) -> dict[str, Any]:
        x0 = latents.encode(frozen, key_for(seed, step, Purpose.ENCODE), batch["image"])
        return {
            "x0": x0,
            "noise": jax.random.normal(key_for(seed, step, Purpose.NOISE), x0.shape),
            "t": process.sample_time(key_for(seed, step, Purpose.TIME), len(x0)),
            "condition": {"label": batch["label"]},
        }

    def step(
        state: TrainState, batch: Batch, frozen: Any, teacher_params: Any = None
    ) -> tuple[TrainState, Metrics]:
        learner = model
        if teacher is not None:
            learner = Taught(model, teacher, teacher_params, distillation, process)
        gradient = jax.value_and_grad(make_loss(learner, process), has_aux=True)
        with use_layout(layout):
            example = draw(state.step, batch, frozen)
            key = key_for(seed, state.step, Purpose.DROPOUT)
            (loss, metrics), grads = _accumulate(gradient, state.params, example, key, accumulation)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = {decay: averaged(float(decay), tree, params) for decay, tree in state.ema.items()}
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
        }
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return step


def _auxiliary(aux: dict[str, Any]) -> tuple[jax.Array, Metrics]:
    """What a model adds to the loss, summed over layers, and what it measures, averaged."""
    losses = {f"{name}_loss": jnp.sum(value) for name, value in aux.get("losses", {}).items()}
    moves = sum(jnp.sum(value) for value in aux.get("statistics", {}).values())
    metrics = {name: jnp.mean(value) for name, value in aux.get("metrics", {}).items()}
    return sum(losses.values()) + moves, metrics | losses


def _accumulate(gradient, params: Any, example: dict[str, Any], key: jax.Array, parts: int):
    """Averages value and gradient over equal parts of the batch, one after another."""
    if parts == 1:
        return gradient(params, example, key)

    def cut(x: jax.Array) -> jax.Array:
        # Part i takes rows i, i + parts, ...: every device keeps its own rows.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def body(total: Any, scanned: Any) -> tuple[Any, None]:
        number, part = scanned
        value = gradient(params, part, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, value), None

    cut_example = jax.tree.map(cut, example)
    first = jax.tree.map(lambda x: x[0], cut_example)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, params, first, key)
    )
    total = jax.lax.scan(body, zero, (jnp.arange(parts), cut_example))[0]
    return jax.tree.map(lambda x: x / parts, total)
