"""From the folder of a dense run to that of a mixture of experts."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dit_jax import serialization
from dit_jax.checkpoint import Checkpoints, newest
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.interop.engine import by_path
from dit_jax.layers.block import Alternate
from dit_jax.layers.mlp import Mlp
from dit_jax.models import DiT
from dit_jax.models.inputs import abstract_parameters, example_inputs
from dit_jax.moe.experts import Params
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import Run, load
from dit_jax.sizes import count_active, count_parameters
from dit_jax.training.distillation import Distillation
from dit_jax.upcycling.methods import Method

_LAYERS = "blocks/layers/"

# A parameter's path, the number of its layer (None: all of it), and the values.
Piece = tuple[str, int | None, np.ndarray]


def upcycle(folder: str, out: str, method: Method, *, every: int = 1, seed: int = 0) -> list[str]:
    """Makes a run whose perceptrons are mixtures of experts, from a dense run's parameters.

    What is made has one set of parameters, at step 0, and no optimizer; a failure leaves nothing.

    Args:
      folder: a run folder, or one of its checkpoints; its first EMA is taken.
      out: folder to make.
      method: what experts are made of.
      every: 1 for experts in all blocks, 2 for every second one, from the second on, and so on.
      seed: seed of all that is random: the routers, the noise, the batches.

    Returns:
      What was made, a line each.

    Raises:
      InputError: the run is not dense, or the options do not fit it, or `out` is there already.
    """
    target = pathlib.Path(out).expanduser()
    if target.exists():
        raise InputError(f"'{out}' is there already: choose another folder")
    if seed < 0:
        raise InputError(f"--seed {seed}: it must be at least 0")
    run = load(folder)
    model = _model(run, folder, method, every)
    pieces = _pieces(run, model, method.layers(run, seed), every, seed)
    provenance = {
        "run": folder,
        "step": run.step,
        "method": serialization.to_json(method),
        "every": every,
        "seed": seed,
        "source": _source(folder),
    }
    scratch = target.with_name(target.name + ".incomplete")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _write(str(scratch), _experiment(run, model, out), run.shape, pieces, provenance)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _report(run, model, every)


def _model(run: Run, folder: str, method: Method, every: int) -> DiT:
    """The dense model with experts in every `every`-th block."""
    dense = run.model
    if type(dense) is not DiT or type(dense.ffn) is not Mlp:
        mixer = f" with {type(dense.ffn).__name__}" if isinstance(dense, DiT) else ""
        raise InputError(
            f"'{folder}' is a {type(dense).__name__}{mixer}: experts are made of a DiT's plain Mlp"
        )
    if every < 1 or dense.depth % every:
        raise InputError(f"--every {every} does not divide the {dense.depth} blocks")
    moe = method.mixer(dense.ffn, dense.hidden)
    if every == 1:
        return dense.clone(ffn=moe)
    return dense.clone(ffn=Alternate((*(dense.ffn.clone() for _ in range(every - 1)), moe)))


def _experiment(run: Run, model: DiT, out: str) -> Experiment:
    """The run's experiment with another model, and one set of parameters in place of averages."""
    old = run.experiment
    return dataclasses.replace(
        old,
        model=model,
        training=dataclasses.replace(old.training, ema=()),
        run=dataclasses.replace(old.run, dir=out),
        init_from=None,
        distillation=Distillation(),
    )


def _pieces(
    run: Run, model: DiT, layers: Callable[[int], Params], every: int, seed: int
) -> Iterator[Piece]:
    """The new parameters, a block at a time: more than one's experts need not fit in memory."""
    params = jax.tree.map(np.asarray, run.params)
    for path, leaf in by_path(params).items():
        if not path.startswith(_LAYERS):
            yield path, None, leaf
    for layer in range(run.model.depth):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"]["layers"])
        group, position = divmod(layer, every)
        if position == every - 1:
            block["ffn"] = layers(layer)
        place = _LAYERS if every == 1 else f"{_LAYERS}blocks_{position}/"
        for path, leaf in by_path(block).items():
            yield place + path, group, np.asarray(leaf)
    for path, leaf in _routers(model, run.shape, seed).items():
        yield path, None, np.asarray(leaf)


def _routers(model: DiT, shape: tuple[int, int, int], seed: int) -> dict[str, jax.Array]:
    """Fresh parameters of the routers alone."""

    @jax.jit
    def init() -> dict[str, jax.Array]:
        _, *inputs = example_inputs(shape)
        params = by_path(model.init(key_for(seed, 0, Purpose.INIT), *inputs)["params"])
        return {path: leaf for path, leaf in params.items() if "/router/" in path}

    return init()


def _source(folder: str) -> dict[str, Any] | None:
    """Where the dense weights were converted from, whose licence stays with them."""
    checkpoints, step = newest(folder)
    return checkpoints.metadata(step).get("source")


def _write(
    folder: str,
    experiment: Experiment,
    shape: tuple[int, int, int],
    pieces: Iterator[Piece],
    provenance: dict[str, Any],
) -> None:
    """Writes a checkpoint of one set of parameters."""
    abstract = abstract_parameters(experiment.model, shape)
    metadata = {
        "experiment": serialization.to_json(experiment),
        "shape": list(shape),
        "upcycled": provenance,
    }
    checkpoints = Checkpoints(folder)
    checkpoints.reserve({"params": abstract}, metadata)
    arrays = {
        path: checkpoints.array(0, "params", path, leaf) for path, leaf in by_path(abstract).items()
    }
    for path, layer, values in pieces:
        arrays[path][slice(None) if layer is None else layer].write(values).result()
    checkpoints.close()


def _report(run: Run, model: DiT, every: int) -> list[str]:
    dense, moe = run.model.ffn, model.ffn if every == 1 else model.ffn.mixers[-1]
    neurons = lambda mixer: int(mixer.ratio * model.hidden)  # noqa: E731
    shared = neurons(moe.shared) if moe.shared else 0
    active = moe.router.chosen * neurons(moe.experts) + shared
    beside = f" and a shared one of {shared}" if shared else ""
    return [
        f"{model.depth // every} of {model.depth} blocks: {moe.router.experts} experts of "
        f"{neurons(moe.experts)} neurons, {moe.router.chosen} a token{beside}",
        f"{active} neurons of an FFN are active, and {neurons(dense)} in the dense one: "
        f"{active / neurons(dense):.1%}",
        f"{count_parameters(model, run.shape):,} parameters, "
        f"{count_active(model, run.shape):,} active; the dense model has "
        f"{count_parameters(run.model, run.shape):,}",
    ]
