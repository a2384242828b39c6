"""dit_jax: Diffusion Transformers in JAX."""

import importlib
from typing import Any

from dit_jax.version import VERSION

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

__all__ = sorted(_EXPORTS)
__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dit_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
