"""Means and variances of many samples, a part at a time (Chan, Golub & LeVeque, 1979)."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """What is known of samples seen so far; parts merge in any order, up to rounding.

    Attributes:
      count: number of samples.
      mean: their mean, float64.
      squares: summed squared deviations from it, float64.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @staticmethod
    def none(shape: tuple[int, ...]) -> "Moments":
        """Of no samples yet."""
        return Moments(0, np.zeros(shape), np.zeros(shape))

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets of samples together."""
        count = self.count + other.count
        if not count:
            return self
        step, share = other.mean - self.mean, other.count / count
        squares = self.squares + other.squares + np.square(step) * self.count * share
        return Moments(count, self.mean + step * share, squares)

    @property
    def variance(self) -> np.ndarray:
        """Of the population, float64."""
        return self.squares / self.count
