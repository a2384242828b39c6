"""From a run to pictures."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dit_jax.diffusion import (
    Autoguidance,
    CachingDenoiser,
    ClassifierFree,
    Denoiser,
    Guidance,
    Process,
    Sampling,
    Sharing,
    Solver,
    cache_first_half,
    sample_keys,
    sample_loop,
)
from dit_jax.errors import InputError
from dit_jax.images import to_uint8
from dit_jax.latents import Latents
from dit_jax.models.decoupled import check_decoupled
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout, place
from dit_jax.run import Run, mismatches


def sample(
    run: Run,
    labels: Sequence[int] | np.ndarray,
    *,
    seed: int = 0,
    solver: Solver | None = None,
    guidance: Guidance | float | None = None,
    sharing: Sharing | None = None,
    weak: Run | None = None,
    batch_size: int | None = None,
    decode: bool = True,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Draws one image for each label.

    Sample i is a function of (seed, i, its label) alone, up to the rounding of matmuls of another
    shape: neither the batch size nor the number of devices chooses its noise. (A mixture of experts
    that drops tokens, or whose experts choose among samples, looks at the rest of the batch too.)

    Args:
      run: a loaded run.
      labels: class of each sample, [N] or nested; the null label, num_classes, is allowed.
      seed: seed of the noise.
      solver: from noise to data; the run's own by default.
      guidance: a guidance scale (1 for none) or a guidance object; the run's own by default.
      sharing: evaluations that share a condition encoder's output (`Sharing()` for none); the run's
        own by default.
      weak: the worse run, for Autoguidance, which a scale alone means then.
      batch_size: samples drawn at once, over all devices; all by default.
      decode: return images; otherwise latents.
      mesh: devices to use; all by default.

    Returns:
      uint8 images [N, H, W, C], or float32 latents [N, h, w, c]; all of them on every process.

    Raises:
      InputError: a label outside the classes, or parts that do not fit.
    """
    numbers = check_labels(labels, run.model.num_classes)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"a batch size of {batch_size}: it must be at least 1")
    batches = sample_batches(
        run,
        numbers,
        batch_size or len(numbers),
        seed=seed,
        solver=solver,
        guidance=guidance,
        sharing=sharing,
        weak=weak,
        decode=decode,
        mesh=mesh,
    )
    return np.concatenate(list(batches))


def sample_batches(
    run: Run,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int = 0,
    solver: Solver | None = None,
    guidance: Guidance | float | None = None,
    sharing: Sharing | None = None,
    weak: Run | None = None,
    decode: bool = True,
    mesh: Mesh | None = None,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """As `sample`, a batch at a time; batches but the last hold `batch_size` samples.

    Those before number `first` are left out; the others are what they would be among all.
    """
    sampling = choose_sampling(run, solver, guidance, sharing, weak)
    layout = Layout(mesh or Parallel().mesh())
    devices = layout.mesh.devices.size
    padded = -(-batch_size // devices) * devices
    models = run.params, weak and weak.params
    models = place(models, layout.parameters(models))
    decoder = place(run.latents.load_decoder() if decode else None, layout.replicated)
    for start in range(first, len(labels), batch_size):
        # A short batch is filled up, so that one compiled program serves all.
        rows = np.arange(start, start + padded)
        chunk = labels[np.minimum(rows, len(labels) - 1)]
        indices, chunk = place((rows.astype(np.uint32), chunk), layout.batch)
        images = _generate(
            run.model,
            weak and weak.model,
            run.process,
            run.latents if decode else None,
            sampling,
            run.shape,
            (*models, decoder),
            chunk,
            place(np.uint32(seed), layout.replicated),
            indices,
        )
        images = multihost_utils.process_allgather(images, tiled=True)
        yield images[: min(batch_size, len(labels) - start)]


def make_denoiser(model: Any, process: Process, params: Any) -> Denoiser:
    """Returns (x, t, condition) -> output for one model, in library time, t a scalar."""

    def denoise(x: jax.Array, t: jax.Array, condition: dict[str, jax.Array]) -> jax.Array:
        times = jnp.broadcast_to(process.model_time(t), (len(x),))
        return model.apply({"params": params}, x, times, condition).prediction

    return denoise


def make_caching_denoiser(model: Any, process: Process, params: Any) -> CachingDenoiser:
    """As `make_denoiser`, for a `Decoupled` model: what its encoder returns is cached."""

    def encode(x: jax.Array, t: jax.Array, condition: dict[str, jax.Array]) -> jax.Array:
        times = jnp.broadcast_to(process.model_time(t), (len(x),))
        return model.apply({"params": params}, x, times, condition, method="encode")

    def decode(x: jax.Array, t: jax.Array, condition: dict, s: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x, s, method="decode").prediction

    return cache_first_half(encode, decode)


def check_labels(labels: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Returns labels as int32 [N].

    Raises:
      InputError: there are none, they are no integers, or one is outside [0, num_classes].
    """
    given = np.asarray(labels).reshape(-1)
    if not len(given):
        raise InputError("no labels: give at least one")
    if not np.issubdtype(given.dtype, np.integer):
        raise InputError(f"label {given[0]} is not an integer: give class numbers")
    numbers = given.astype(np.int32)
    outside = numbers[(numbers < 0) | (numbers > num_classes)]
    if len(outside):
        raise InputError(
            f"label {outside[0]} is outside the model's {num_classes} classes: use 0 to "
            f"{num_classes - 1}, or {num_classes} for no class"
        )
    return numbers


def preview_labels(num_classes: int, rows: int = 8) -> np.ndarray:
    """Labels of a grid [rows, columns]: a column a class, for up to ten classes."""
    columns = np.arange(min(num_classes, 10)) if num_classes else np.zeros(8)
    return np.tile(columns.astype(np.int32), (rows, 1))


def choose_sampling(
    run: Run,
    solver: Solver | None = None,
    guidance: Guidance | float | None = None,
    sharing: Sharing | None = None,
    weak: Run | None = None,
) -> Sampling:
    """Returns how to draw samples: what is asked for, else the run's own.

    Raises:
      InputError: the parts do not fit each other or the run.
    """
    own = run.experiment.sampling
    guidance = choose_guidance(run, guidance, weak)
    sampling = Sampling(solver or own.solver, guidance, sharing or own.sharing)
    sampling.check(run.process)
    if sampling.sharing.acts:
        check_decoupled(run.model)
    return sampling


def choose_guidance(
    run: Run, guidance: Guidance | float | None, weak: Run | None = None
) -> Guidance | None:
    """Returns the guidance to use: what is asked for, else the run's own; None for none.

    Raises:
      InputError: it does not fit the model.
    """
    if weak is not None:
        _check_weak(run, guidance, weak)
    if guidance is None:
        guidance = run.experiment.sampling.guidance
    if isinstance(guidance, int | float):
        kind = ClassifierFree if weak is None else Autoguidance
        guidance = kind(float(guidance))
    if guidance is None or guidance.scale == 1:
        return None
    if isinstance(guidance, Autoguidance) != (weak is not None):
        raise InputError("Autoguidance and a weak run go together: give both or neither")
    if isinstance(guidance, ClassifierFree) and not run.model.num_classes:
        raise InputError("an unconditional model has nothing to guide: leave guidance out")
    return guidance


def _check_weak(run: Run, guidance: Guidance | float | None, weak: Run) -> None:
    if guidance is None:
        raise InputError("a weak run guides by a scale: give --guidance too, 1.5 say")
    if found := mismatches(weak, run.experiment):
        raise InputError(f"the weak run cannot guide this one ({'; '.join(found)}): choose another")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _generate(
    model: Any,
    weak_model: Any,
    process: Process,
    latents: Latents | None,
    sampling: Sampling,
    shape: tuple[int, int, int],
    params: tuple[Any, Any, Any],
    labels: jax.Array,
    seed: jax.Array,
    indices: jax.Array,
) -> jax.Array:
    solver, guidance, sharing = sampling.solver, sampling.guidance, sampling.sharing
    make = make_caching_denoiser if sharing.acts else make_denoiser
    denoise: Any = make(model, process, params[0])  # Of the kind that what follows takes.
    if isinstance(guidance, Autoguidance):
        denoise = guidance(denoise, make_denoiser(weak_model, process, params[1]))
    elif isinstance(guidance, ClassifierFree):
        denoise = guidance(denoise, model.null_condition)
    if sharing.acts:
        denoise = sharing(denoise, solver.evaluations(process))
    keys = sample_keys(seed, indices)
    x = sample_loop(process, solver, denoise, {"label": labels}, keys, shape)
    return x if latents is None else to_uint8(latents.decode(params[2], x))
