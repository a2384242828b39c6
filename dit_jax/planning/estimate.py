"""What a step should take by shapes alone: good enough to choose what to compile."""

import collections
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.models.inputs import abstract_parameters, example_inputs
from dit_jax.parallel.sharding import Layout
from dit_jax.planning.plan import state_bytes
from dit_jax.planning.roofline import MATMUL, Roofline, wire_seconds
from dit_jax.planning.topology import Slice
from dit_jax.planning.traffic import Collective
from dit_jax.training.program import make_program
from dit_jax.training.state import TrainState

# Times that a block's tokens cross the devices in a step, forward and back: partial sums of
# attention and of the perceptron, and rows to two experts and home again.
_SUMS, _ROWS = 4, 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run an experiment, and what it should take.

    Attributes:
      experiment: with its mesh and remat policy.
      bytes: of a device.
      seconds: of a step.
    """

    experiment: Experiment
    bytes: float
    seconds: float


def estimate(
    experiment: Experiment,
    where: Slice,
    abstract: TrainState,
    work: int,
    kept: int,
    carried: int,
) -> Candidate:
    """Adds up state, gradients and activations; matmuls, and exchanges of parameters and rows.

    Args:
      experiment: with its mesh and remat policy.
      where: the slice.
      abstract: shapes of the state.
      work: FLOPs of a step on all devices.
      kept: bytes that an image's forward pass keeps.
      carried: bytes of an image's tokens between blocks, summed over blocks.

    Raises:
      InputError: arrays or batch do not divide over the mesh, or it has an axis without a use.
    """
    layout = Layout(experiment.parallel.mesh(list(where.devices)))
    program = make_program(experiment, layout, abstract)
    _check_use(program.abstract.params, layout)
    state = state_bytes(program)
    images = experiment.training.batch_size / layout.ways("batch")
    activations = kept * images / experiment.training.accumulation / layout.ways("mlp")
    where = where.along(layout.mesh)
    parts = _exchanges(layout, state.parameters, carried * images)
    wire = sum(wire_seconds(where, part) for part in parts)
    compute = work / len(where.devices) / (where.chip.flops * MATMUL)
    seconds = Roofline(compute, 0.0, wire).estimate
    return Candidate(experiment, state.total + state.parameters + activations, seconds)


def kept_bytes(experiment: Experiment) -> int:
    """Bytes that the forward pass of one image keeps for the backward pass."""
    _, *inputs = example_inputs(experiment.shape)
    params = {"params": abstract_parameters(experiment.model, experiment.shape)}

    def kept(params: Any) -> Any:
        return jax.vjp(lambda p: experiment.model.apply(p, *inputs).prediction, params)[1]

    # Not all parameters are kept; those that are cost nothing more.
    own = collections.Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params))
    found = collections.Counter(
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(kept, params))
    )
    return sum(n * math.prod(shape) * dtype.itemsize for (shape, dtype), n in (found - own).items())


def _exchanges(layout: Layout, parameters: int, rows: float) -> list[Collective]:
    """Gathers of parameters twice, sums of gradients, and what blocks send; matmuls are bf16."""
    sizes = layout.mesh.shape
    whole = parameters / 2 * sizes["fsdp"]
    sent = {
        ("all-gather", "fsdp"): 2 * whole,
        ("all-reduce", "fsdp"): 2 * whole,
        ("all-reduce", "data"): parameters,
        ("all-reduce", "tensor"): 2 * _SUMS * rows,
        ("all-to-all", "expert"): _ROWS * rows,
    }
    return [
        Collective(kind, (axis,), 1, size * (1 - 1 / sizes[axis]), _group(layout, axis))
        for (kind, axis), size in sent.items()
        if sizes[axis] > 1
    ]


def _group(layout: Layout, axis: str) -> tuple[int, ...]:
    mesh = layout.mesh
    places = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    number = mesh.axis_names.index(axis)
    return tuple(np.moveaxis(places, number, -1).reshape(-1, mesh.shape[axis])[0].tolist())


def _check_use(params: Any, layout: Layout) -> None:
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    if layout.mesh.shape["expert"] > 1 and not any("/experts/" in name for name in names):
        raise InputError("a model without experts has no use for a mesh axis of experts")
