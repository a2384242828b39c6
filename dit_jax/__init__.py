"""dit_jax: Diffusion Transformers in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from dit_jax.version import VERSION

if TYPE_CHECKING:  # For editors and type checkers; at run time the table below serves.
    from dit_jax.errors import InputError
    from dit_jax.experiment import Experiment
    from dit_jax.model_summary import summary
    from dit_jax.presets import create_model
    from dit_jax.run import Run, load
    from dit_jax.sampling import sample
    from dit_jax.training.loop import train

# Imported when first used, so that `import dit_jax` and `--help` stay quick.
_EXPORTS = {
    "Experiment": "dit_jax.experiment",
    "InputError": "dit_jax.errors",
    "Run": "dit_jax.run",
    "create_model": "dit_jax.presets",
    "load": "dit_jax.run",
    "sample": "dit_jax.sampling",
    "summary": "dit_jax.model_summary",
    "train": "dit_jax.training.loop",
}

__all__ = [
    "Experiment",
    "InputError",
    "Run",
    "create_model",
    "load",
    "sample",
    "summary",
    "train",
]
__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dit_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
