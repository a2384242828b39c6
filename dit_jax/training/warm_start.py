"""Fine-tuning: start from another run's parameters."""

import logging
from typing import Any

import jax

from dit_jax.errors import InputError
from dit_jax.parallel.sharding import place
from dit_jax.run import load

log = logging.getLogger(__name__)


def warm_start(folder: str, params: Any) -> Any:
    """Replaces parameters by those of the same path and shape in another run.

    Parameters of another shape (a head for another number of classes) keep their fresh values and
    are listed, as are those that the other run does not have.

    Raises:
      InputError: `folder` holds no checkpoint, or none of its parameters fits.
    """
    source = _by_path(load(folder).params)
    target = _by_path(params)
    fits = {p for p, v in target.items() if p in source and source[p].shape == v.shape}
    if not fits:
        raise InputError(f"no parameter of '{folder}' fits this model: choose a run of its family")
    for path in sorted(target.keys() - fits):
        if path in source:
            shapes = f"{source[path].shape} there, {target[path].shape} here"
            log.info("re-initialised %s: %s", path, shapes)
        else:
            log.info("not found in '%s', re-initialised: %s", folder, path)
    for path in sorted(source.keys() - target.keys()):
        log.info("not used from '%s': %s", folder, path)
    log.info("started from '%s': %d of %d parameters", folder, len(fits), len(target))
    merged = {
        path: place(source[path], value.sharding) if path in fits else value
        for path, value in target.items()
    }
    leaves = [merged[path] for path in target]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _by_path(tree: Any) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
