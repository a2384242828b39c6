"""What a family of checkpoints has to say to be converted: a subclass, in a file of its own."""

import abc
import dataclasses
import re
import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.interop.rules import Entry

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Found:
    """A model as a file's shapes, or a preset, describe it.

    Attributes:
      module: the model.
      inputs: example inputs for `module.init`, the key included.
      experiment: for a diffusion model, all that it takes to sample it; its data are absent.
      notes: what else its file says, as JSON values: kept with the weights, for the way back.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    experiment: Experiment | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def abstract(self) -> Any:
        """Shapes and dtypes of the parameters; computes nothing."""
        return jax.eval_shape(self.module.init, *self.inputs)["params"]


class Layout(abc.ABC):
    """Names and shapes that one code base gives its tensors.

    Attributes:
      name: what `--layout` calls it.
      licence: of the weights its authors released; None where that differs from file to file.
      config: file name of the configuration that goes beside the weights, for code bases whose
        models are folders; None for plain files.
      weights: file name of the weights in such a folder.
    """

    name: str
    licence: str | None = None
    config: str | None = None
    weights: str = "model.safetensors"

    @abc.abstractmethod
    def matches(self, shapes: Shapes) -> bool:
        """Whether a file with these tensors is of this family."""

    @abc.abstractmethod
    def describe(self, shapes: Shapes, config: dict[str, Any]) -> Found:
        """Reads the model off the tensors' shapes, and the configuration where there is one.

        Raises:
          InputError: the shapes leave it open.
        """

    @abc.abstractmethod
    def exports(self, found: Found) -> bool:
        """Whether a model, with its process, means the same in this layout."""

    @abc.abstractmethod
    def entries(self, found: Found) -> list[Entry]:
        """Rules for every tensor of the state dict of a model."""

    def write_config(self, found: Found, read: Callable[[str], np.ndarray]) -> dict[str, Any]:
        """The configuration that goes beside the weights, where `config` names one.

        Args:
          found: the model.
          read: reads one of the tensors that are written, by its key.
        """
        raise NotImplementedError


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Number of layers whose keys begin with `prefix`, a dot and their number."""
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", key) for key in shapes)
    return 1 + max(int(found[1]) for found in numbers if found)


def agreed_length(shapes: Shapes, axes: dict[str, int]) -> int:
    """Length on which most tensors agree, so that one that is wrong is named as such later.

    Args:
      shapes: the file's tensors.
      axes: which axis has that length, for each regular expression of keys.

    Raises:
      InputError: there are no such tensors.
    """
    lengths = [
        shape[axis]
        for key, shape in shapes.items()
        for pattern, axis in axes.items()
        if re.fullmatch(pattern, key) and len(shape) > axis
    ]
    if not lengths:
        raise InputError(f"missing tensors such as {next(iter(axes))}: this is no whole file")
    return statistics.mode(lengths)
