"""At which evaluations a model's condition encoder should run, from samples of the model."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dit_jax.diffusion import (
    Guidance,
    Process,
    Sampling,
    Sharing,
    Solver,
    check_budget,
    choose_steps,
    initial_noise,
    mean_similarity,
    record,
    sample_keys,
    token_similarity,
)
from dit_jax.models.decoupled import check_decoupled
from dit_jax.run import Run
from dit_jax.sampling import check_labels, choose_sampling, make_caching_denoiser


def find_steps(run: Run, budget: int, samples: int, seed: int, guidance: float | None) -> list[str]:
    """Finds the steps for the run's own solver, and says how good they are.

    Args:
      run: a run of a model that has a condition encoder.
      budget: how many evaluations it runs at.
      samples: samples to look at; classes take turns.
      seed: seed of the noise.
      guidance: classifier-free guidance scale; the run's own if None.

    Returns:
      Lines: the steps as `--sharing` takes them, and what they gain over evenly spaced ones.

    Raises:
      InputError: the budget or the run does not fit.
    """
    evaluations = run.experiment.sampling.solver.evaluations(run.process)
    check_budget(budget, evaluations)
    labels = np.arange(samples) % max(run.model.num_classes, 1)
    similarity = encoder_similarity(run, labels, seed=seed, guidance=guidance)
    chosen = choose_steps(similarity, budget)
    even = tuple(i * evaluations // budget for i in range(budget))
    best, plain = (
        mean_similarity(similarity, Sharing(steps=steps).refreshes(evaluations))
        for steps in (chosen, even)
    )
    return [
        f"--sharing {','.join(map(str, chosen))}",
        f"mean cosine similarity over {evaluations} evaluations: {best:.4f}; as many evenly "
        f"spaced: {plain:.4f}",
    ]


def encoder_similarity(
    run: Run,
    labels: Sequence[int],
    *,
    seed: int = 0,
    solver: Solver | None = None,
    guidance: Guidance | float | None = None,
) -> np.ndarray:
    """Compares the condition encoder's outputs at all evaluations, while samples are drawn.

    `choose_steps` finds from it where to run the encoder: DDT's choice (arXiv 2504.05741), which is
    good for this solver and this guidance. All outputs are kept until the end.

    Args:
      run: a run of a model that has such an encoder.
      labels: class of each sample, [B]; a few are enough (the authors take 8).
      seed: seed of the noise.
      solver: from noise to data; the run's own by default.
      guidance: a guidance scale (1 for none) or a guidance object; the run's own by default.

    Returns:
      Mean cosine similarity of tokens, of both halves under classifier-free guidance: float32
      [T, T] for a solver of T evaluations.

    Raises:
      InputError: a label outside the classes, or parts that do not fit.
    """
    labels = check_labels(labels, run.model.num_classes)
    check_decoupled(run.model)
    sampling = choose_sampling(run, solver, guidance, Sharing())
    args = run.params, labels, np.uint32(seed)
    return np.asarray(_similarity(run.model, run.process, sampling, run.shape, *args))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _similarity(
    model: Any,
    process: Process,
    sampling: Sampling,
    shape: tuple[int, int, int],
    params: Any,
    labels: jax.Array,
    seed: jax.Array,
) -> jax.Array:
    solver, condition = sampling.solver, {"label": labels}
    denoise = make_caching_denoiser(model, process, params)
    if sampling.guidance is not None:
        denoise = sampling.guidance(denoise, model.null_condition)
    denoise = record(denoise, solver.evaluations(process))
    x, keys = initial_noise(sample_keys(seed, np.arange(len(labels))), shape)
    state = denoise.start(x, condition)
    _, (_, tokens) = solver.solve(process, denoise, x, state, condition, keys)
    return token_similarity(tokens)
