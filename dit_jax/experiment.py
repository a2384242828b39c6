"""An experiment: the tree of objects that says everything about a run."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from dit_jax import serialization
from dit_jax.data.loader import Loader
from dit_jax.data.source import Source
from dit_jax.diffusion import Autoguidance, ClassifierFree, Process, Sampling
from dit_jax.errors import InputError
from dit_jax.evaluation.options import Evaluation
from dit_jax.latents import Latents, Pixels
from dit_jax.models.decoupled import check_decoupled
from dit_jax.models.inputs import example_inputs
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.randomness import Purpose, key_for
from dit_jax.training.distillation import Distillation
from dit_jax.training.optimizer import AdamW, Optimizer
from dit_jax.training.state import TrainState, new_state, state_shardings


@dataclasses.dataclass(frozen=True)
class Training:
    """What the training loop does.

    Attributes:
      steps: optimizer steps.
      batch_size: images a step, over all devices.
      accumulation: parts into which a batch is cut to save memory; their gradients are averaged.
      ema: decays of the averaged parameters that are kept; the first is used for sampling.
      seed: seed of initialisation, data order, noise and dropout.
    """

    steps: int = 400_000
    batch_size: int = 256
    accumulation: int = 1
    ema: tuple[float, ...] = (0.9999,)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run leaves what it makes, and how often.

    Attributes:
      dir: the run's folder; the same command run again resumes there.
      log_every: steps between log lines.
      sample_every: steps between sample grids; 0 draws none.
      save_every: steps between checkpoints; there is always one at the end.
      keep: newest checkpoints to keep.
      keep_every: also keep, for good, checkpoints whose step is a multiple of this.
      allow_changes: resume although the configuration differs from the run's.
    """

    dir: str
    log_every: int = 100
    sample_every: int = 0
    save_every: int = 10_000
    keep: int = 3
    keep_every: int | None = None
    allow_changes: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A model, what it learns from, how, and where the results go.

    Attributes:
      model: the backbone.
      process: how data is noised and what the model predicts.
      data: the images.
      run: the run's folder.
      latents: the space that is diffused.
      sampling: how samples are drawn, for previews and by default afterwards.
      optimizer: how parameters move.
      training: the loop.
      loader: how records are read.
      parallel: the device mesh.
      evaluation: what is measured at the end.
      init_from: run folder or checkpoint whose parameters to start from (fine-tuning).
      distillation: a run to learn from beside the data.
    """

    model: nn.Module
    process: Process
    data: Source
    run: RunFolder
    sampling: Sampling
    latents: Latents = dataclasses.field(default_factory=Pixels)
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)
    training: Training = dataclasses.field(default_factory=Training)
    loader: Loader = dataclasses.field(default_factory=Loader)
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    init_from: str | None = None
    distillation: Distillation = dataclasses.field(default_factory=Distillation)

    def __post_init__(self):
        refuse_shared_modules(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape [h, w, c] of one sample of the space that is diffused."""
        return self.latents.shape(self.data.shape)

    def check(self) -> None:
        """Raises InputError where the parts do not fit each other; opens no split of the data."""
        shape = self.shape
        output = jax.eval_shape(self.model.init_with_output, *example_inputs(shape))[0]
        wanted = self.process.output_channels(shape[-1])
        if output.prediction.shape[-1] < wanted:
            raise InputError(
                f"the process needs {wanted} output channels and the model gives "
                f"{output.prediction.shape[-1]}: set model.learn_sigma"
            )
        self.sampling.check(self.process)
        if self.sampling.sharing.acts:
            check_decoupled(self.model)
        self.distillation.check(learned_variance=wanted > shape[-1])
        classes, found = self.model.num_classes, self.data.num_classes
        if classes and classes != found:
            raise InputError(
                f"the model has {classes} classes and the data {_classes_there(found)}"
            )
        if isinstance(self.sampling.guidance, ClassifierFree) and not classes:
            raise InputError("an unconditional model has nothing to guide: set guidance=None")
        if isinstance(self.sampling.guidance, Autoguidance):
            raise InputError(
                "autoguidance needs a second run, which training has not: pass it to "
                "dit_jax.sample, and set another sampling.guidance here"
            )
        if self.run.sample_every and not self.latents.decodes:
            raise InputError(
                "sample grids need the weights of a decoder: set them in `latents`, or "
                "--run.sample-every 0"
            )
        evaluation = self.evaluation
        samples = {
            "evaluation.samples": evaluation.samples,
            "evaluation.held-out": evaluation.held_out,
        }
        _refuse_below(0, samples | {"evaluation.every": evaluation.every})
        _refuse_below(1, {"evaluation.batch-size": evaluation.batch_size})
        if evaluation.samples:
            evaluation.check()
        if evaluation.every:
            evaluation.in_training().check()
        check_training(self.training, self.run)

    def fresh_state(self) -> TrainState:
        """Builds the training state before the first step."""
        _, *inputs = example_inputs(self.shape)
        params = self.model.init(key_for(self.training.seed, 0, Purpose.INIT), *inputs)["params"]
        return new_state(params, self.optimizer.build(self.training.steps), self.training.ema)

    def state_shardings(self, layout: Layout, abstract: TrainState) -> TrainState:
        """Where a training state of these shapes lies."""
        return state_shardings(layout, self.optimizer.build(self.training.steps), abstract)


def _classes_there(found: int) -> str:
    """How many classes the data have, and what would make the model fit them."""
    if not found:
        return (
            "none: put the images of each class into a folder of their own, or make the model "
            "unconditional (num_classes=0, guidance=None)"
        )
    return f"{found}: set --model.num-classes {found}, or 0 for an unconditional model"


def trajectory_differences(old: Any, new: Any) -> list[str]:
    """Lists the differences that would make a resumed run another run.

    Where the run lies, how often it saves, how records are read and how work is divided may change.
    """
    free = {"run", "loader", "parallel", "evaluation", "sampling", "init_from", "held_out"}
    kept = {name: getattr(old, name, None) for name in free & serialization.children(new).keys()}
    same = dataclasses.replace(new, **kept)
    return serialization.differences(old, same)


def check_training(training: Training, run: RunFolder) -> None:
    """Raises InputError where a number makes no sense."""
    at_least_0 = {
        "training.seed": training.seed,
        "run.sample-every": run.sample_every,
    }
    at_least_1 = {
        "training.steps": training.steps,
        "training.batch-size": training.batch_size,
        "training.accumulation": training.accumulation,
        "run.log-every": run.log_every,
        "run.save-every": run.save_every,
        "run.keep": run.keep,
        "run.keep-every": run.keep_every or 1,
    }
    _refuse_below(0, at_least_0)
    _refuse_below(1, at_least_1)
    if training.batch_size % training.accumulation:
        raise InputError(
            f"--training.accumulation {training.accumulation} does not divide the batch of "
            f"{training.batch_size}"
        )
    if not training.ema or not all(0 <= decay < 1 for decay in training.ema):
        raise InputError(
            f"--training.ema {training.ema}: decays lie in [0, 1), at least one of them"
        )


def _refuse_below(low: int, values: dict[str, int]) -> None:
    for name, value in values.items():
        if value < low:
            raise InputError(f"--{name} is {value}: it must be at least {low}")


def refuse_shared_modules(experiment: Any) -> None:
    """A module reachable twice would silently share its weights; tying is done explicitly."""
    seen: dict[int, str] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, nn.Module):
            if id(value) in seen:
                raise InputError(
                    f"'{seen[id(value)]}' and '{path}' are one {type(value).__name__} object, and "
                    f"would share weights: build one for each"
                )
            seen[id(value)] = path
        for name, child in serialization.children(value).items():
            visit(child, f"{path}.{name}" if path else name)

    visit(experiment, "")
