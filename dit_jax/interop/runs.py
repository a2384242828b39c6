"""A run that is written as a `.safetensors` file says there what it is, and comes back as that.

Tensors alone tell neither the process nor the number of heads, nor how to sample.
"""

import json

from dit_jax import serialization
from dit_jax.data.absent import Absent
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.interop.layout import Found, Layout
from dit_jax.models.inputs import example_inputs

_KEY = "dit_jax"


def notes_of(found: Found, layout: Layout) -> dict[str, str]:
    """What goes into the header of a file: nothing but for a model with an experiment."""
    if found.experiment is None:
        return {}
    run = found.experiment
    bare = Experiment(
        model=found.module,
        process=run.process,
        sampling=run.sampling,
        latents=run.latents,
        data=Absent(run.data.shape, run.data.num_classes),
        training=Training(ema=()),
        run=RunFolder(""),
    )
    note = {"layout": layout.name, "experiment": serialization.to_json(bare)}
    return {_KEY: json.dumps(note)}


def run_of(notes: dict[str, str]) -> tuple[str, Found] | None:
    """Reads the layout and the model off a file's header; None where it has none of ours.

    Raises:
      InputError: the header is damaged.
    """
    if _KEY not in notes:
        return None
    try:
        note = json.loads(notes[_KEY])
        layout, experiment = note["layout"], serialization.from_json(note["experiment"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the file's own description is damaged: {error}") from error
    return layout, Found(experiment.model, example_inputs(experiment.shape), experiment)
