"""Optimizers and learning-rate schedules, as configuration of optax."""

import abc
import dataclasses

import jax
import optax

from dit_jax.moe.statistics import SUFFIX


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """How the learning rate moves.

    Attributes:
      warmup: steps over which the rate climbs from 0 in a straight line.
    """

    warmup: int = 0

    @abc.abstractmethod
    def after_warmup(self, peak: float, steps: int) -> optax.Schedule:
        """Returns the schedule of the `steps` that follow the warm-up."""

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """Returns the whole schedule of a run of `steps`."""
        rest = self.after_warmup(peak, max(steps - self.warmup, 1))
        if not self.warmup:
            return rest
        ramp = optax.linear_schedule(0.0, peak, self.warmup)
        return optax.join_schedules([ramp, rest], [self.warmup])


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """One rate throughout."""

    def after_warmup(self, peak, steps):
        return optax.constant_schedule(peak)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the peak down.

    Attributes:
      final: last rate over the peak.
    """

    final: float = 0.0

    def after_warmup(self, peak, steps):
        return optax.cosine_decay_schedule(peak, steps, alpha=self.final)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """The peak for a while, then down in a straight line, then the last rate (RAE's second stage).

    Attributes:
      start: step, after the warm-up, at which the line begins.
      stop: step at which it ends.
      final: last rate over the peak.
    """

    start: int = 0
    stop: int = 1_000_000
    final: float = 0.1

    def after_warmup(self, peak, steps):
        length = self.stop - self.start
        return optax.linear_schedule(peak, self.final * peak, length, self.start)


@dataclasses.dataclass(frozen=True)
class Optimizer(abc.ABC):
    """A gradient transformation to be.

    Attributes:
      learning_rate: peak learning rate.
      schedule: how it moves.
      clip_norm: largest global norm of the gradient, or None.
    """

    learning_rate: float = 1e-4
    schedule: Schedule = dataclasses.field(default_factory=Constant)
    clip_norm: float | None = None

    @abc.abstractmethod
    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """Returns the optimizer itself, without clipping."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """Returns the whole transformation of a run of `steps`."""
        transformation = self.transformation(self.schedule.build(self.learning_rate, steps))
        if self.clip_norm is not None:
            transformation = _clipped(self.clip_norm, transformation)
        return _statistics_by_their_rules(transformation)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay on all parameters; defaults as DiT was trained.

    Attributes:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def transformation(self, learning_rate):
        return optax.adamw(
            learning_rate, self.b1, self.b2, eps=self.eps, weight_decay=self.weight_decay
        )


def _clipped(
    norm: float, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Clips gradients first. The state stays the same, so a run can go on with or without."""
    clip = optax.clip_by_global_norm(norm)

    def update(gradients, state, params=None):
        clipped, _ = clip.update(gradients, optax.EmptyState())
        return transformation.update(clipped, state, params)

    return optax.GradientTransformation(transformation.init, update)


def _statistics_by_their_rules(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Subtracts a statistic's gradient as it is (`moe.statistics`); the others do not see it."""

    def split(own, others, tree, *rest):
        def leaf(path, value, *values):
            known = jax.tree_util.keystr(path[-1:], simple=True).endswith(SUFFIX)
            return (own if known else others)(value, *values)

        return jax.tree_util.tree_map_with_path(leaf, tree, *rest)

    def update(gradients, state, params=None):
        trained = split(jax.numpy.zeros_like, lambda g: g, gradients)
        updates, state = transformation.update(trained, state, params)
        return split(lambda _, g: -g, lambda u, _: u, updates, gradients), state

    return optax.GradientTransformation(transformation.init, update)
