"""Whose a run folder is."""

import json
from typing import Any

import jax
from etils import epath

from dit_jax import serialization
from dit_jax.checkpoint import has_checkpoints
from dit_jax.errors import InputError
from dit_jax.experiment import trajectory_differences
from dit_jax.parallel import hosts
from dit_jax.paths import full_path

RECORD = "experiment.json"


def claim_folder(experiment: Any) -> epath.Path:
    """Makes the run's folder this experiment's, and returns it.

    Raises:
      InputError: it holds a run of another configuration.
    """
    folder = full_path(experiment.run.dir)
    hosts.on_main(lambda: _claim(folder, experiment))
    return folder


def _claim(folder: epath.Path, experiment: Any) -> None:
    text = json.dumps(serialization.to_json(experiment), indent=2) + "\n"
    record = folder / RECORD
    if record.exists():
        old = serialization.from_json(json.loads(record.read_text()))
        changed = trajectory_differences(old, experiment)
        if changed and not experiment.run.allow_changes:
            raise InputError(
                f"'{folder}' holds a run of another configuration ({'; '.join(changed)}): choose "
                f"another --run.dir, or pass --run.allow-changes"
            )
        if (
            changed
            and jax.eval_shape(old.fresh_state) != jax.eval_shape(experiment.fresh_state)
            and has_checkpoints(folder)
        ):
            raise InputError(
                f"the checkpoints of '{folder}' are of another model or optimizer "
                f"({'; '.join(changed)}): choose another --run.dir, and --init-from {folder} to "
                f"start from its parameters"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / "experiment.json.tmp"
        scratch.write_text(text)
        scratch.replace(record)
    except OSError as error:
        raise InputError(f"cannot write to --run.dir '{folder}': {error.strerror}") from error
