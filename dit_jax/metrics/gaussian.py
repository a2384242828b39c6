"""Mean and covariance of features, a part at a time (Chan, Golub & LeVeque, 1979)."""

import dataclasses

import numpy as np

from dit_jax.errors import InputError
from dit_jax.parallel import hosts

# Rows of a matrix that processes exchange at once: a whole one of each would be much for one host.
_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The normal distribution that stands for a set of features.

    Attributes:
      mean: [D], float64.
      covariance: [D, D], float64, of the sample (divided by N - 1).
      count: number of features (N); None where a file does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    def __post_init__(self):
        """Checks the shapes and values, which may come from a file.

        Raises:
          InputError: these are no mean and covariance of one space.
        """
        mean, covariance = self.mean.shape, self.covariance.shape
        if len(mean) != 1 or covariance != 2 * mean:
            raise InputError(
                f"a mean {mean} and a covariance {covariance}: give [D] and [D, D] of one D"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise InputError(
                "mean or covariance has values that are not finite: make them from finite features"
            )

    @staticmethod
    def of(features: np.ndarray) -> "Gaussian":
        """Fits features [N, D].

        Raises:
          InputError: there are fewer than two, or not all are finite.
        """
        return Moments.none(features.shape[1]).add(features).gaussian()


@dataclasses.dataclass(frozen=True)
class Moments:
    """What is known of features seen so far; parts merge in any order, up to rounding.

    Attributes:
      count: number of features (N).
      mean: their mean [D], float64.
      scatter: summed outer products of deviations from it [D, D], float64.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @staticmethod
    def none(dimension: int) -> "Moments":
        """Of no features yet."""
        return Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    def add(self, features: np.ndarray) -> "Moments":
        """Of these features [B, D], too: some hundreds at once, as a few take as long.

        Whatever B is, whole matrices [D, D] are added.
        """
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        deviations = x - mean
        return self.merge(Moments(len(x), mean, deviations.T @ deviations))

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets of features together."""
        count = self.count + other.count
        if not count:
            return self
        step, share = other.mean - self.mean, other.count / count
        scatter = self.scatter + other.scatter + np.outer(step * (self.count * share), step)
        return Moments(count, self.mean + step * share, scatter)

    def of_all_processes(self) -> "Moments":
        """Of all processes' features together, the same on all of them.

        All processes must call it. No host holds more than its own matrix and some rows of each
        other one.
        """
        if hosts.alone():
            return self
        together = hosts.gather(np.append(self.mean, self.count))
        means, counts = together[:, :-1], together[:, -1]
        mean = (counts[:, None] * means).sum(axis=0) / max(counts.sum(), 1)
        step = self.mean - mean
        scatter = self.scatter + np.outer(step * self.count, step)
        parts = np.split(scatter, range(_ROWS, len(scatter), _ROWS))
        sums = [hosts.gather(rows).sum(axis=0) for rows in parts]
        return Moments(int(counts.sum()), mean, np.concatenate(sums))

    def gaussian(self) -> Gaussian:
        """The normal distribution of the same mean and covariance.

        Raises:
          InputError: there are fewer than two features, or not all are finite.
        """
        if self.count < 2:
            raise InputError(
                f"the covariance of {self.count} features is not defined: give 2 at least"
            )
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)
