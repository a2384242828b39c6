"""Measures of a set of images by name, as ADM's evaluator has them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError
from dit_jax.metrics.features import FeatureSpace
from dit_jax.metrics.frechet import frechet_distance
from dit_jax.metrics.gaussian import Gaussian, Moments
from dit_jax.metrics.images import STATISTICS, ImageFile, check_bytes, check_comparable
from dit_jax.metrics.inception_score import inception_score
from dit_jax.metrics.kernel_distance import kernel_distance
from dit_jax.metrics.precision_recall import precision_recall
from dit_jax.parallel import hosts
from dit_jax.parallel.local import LocalDevices, progress_bar, share_of

Features = dict[str, np.ndarray]

# Images whose features are added at once.
_JOINED = 512


class _Need(NamedTuple):
    """Features of a kind: their mean and covariance, or `every` single one."""

    kind: str
    every: bool


@dataclasses.dataclass(frozen=True)
class _Metric:
    """What a measure is computed of, and the names of what comes out.

    Attributes:
      outputs: their names.
      need: features of both sets.
      compute: (of samples, of the reference) -> values.
      fewest: images that it wants of each set.
    """

    outputs: tuple[str, ...]
    need: _Need
    compute: Callable[[Any, Any], Iterable[float]]
    fewest: int = 2


def _distance(a: Gaussian, b: Gaussian) -> tuple[float]:
    return (frechet_distance(a, b),)


_METRICS = {
    "fid": _Metric(("fid",), _Need("pool", False), _distance),
    "fd": _Metric(("fd",), _Need("pool", False), _distance),
    "sfid": _Metric(("sfid",), _Need("spatial", False), _distance),
    "is": _Metric(
        ("inception_score", "inception_score_deviation"),
        _Need("logits", True),
        lambda samples, _: inception_score(samples),
    ),
    "pr": _Metric(("precision", "recall"), _Need("pool", True), precision_recall, 4),
    "kid": _Metric(("kid", "kid_deviation"), _Need("pool", True), kernel_distance, 1000),
}


def check_names(names: Sequence[str], space: FeatureSpace, reference: str | None) -> None:
    """Raises InputError where a measure is unknown, or has nothing to compare with."""
    for name in names:
        if name not in space.measures:
            raise InputError(
                f"no metric '{name}' of {type(space).__name__}'s features: choose from "
                f"{', '.join(space.measures)}"
            )
        if name != "is" and reference is None:
            raise InputError(
                f"'{name}' compares with a reference and there is none: give an .npz file, as ADM "
                f"publishes them"
            )


def possible_names(
    space: FeatureSpace, samples: ImageFile, reference: ImageFile | None
) -> tuple[str, ...]:
    """Names of all that can be measured of two files."""
    files = [file for file in (samples, reference) if file is not None]
    counts = [file.shape[0] for file in files if file.shape is not None]

    def possible(name: str) -> bool:
        metric = _METRICS[name]
        compared = reference is not None and (
            reference.shape is not None or metric.need in _statistics(reference, space)
        )
        return (name == "is" or compared) and min(counts, default=0) >= metric.fewest

    return tuple(name for name in space.measures if possible(name))


class Measurement:
    """Measures of images by name, made ready before there are any.

    Processes share the images that are looked at; each must see both files.
    """

    def __init__(
        self,
        names: Sequence[str],
        space: FeatureSpace,
        reference: ImageFile | None,
        batch_size: int = 64,
    ):
        """Loads the network.

        Args:
          names: some of `space.measures`: fid, sfid, is, pr, kid of Inception's features.
          space: what is seen in an image.
          reference: what samples are compared with; statistics that it brings are taken as they
            are.
          batch_size: images at once on each device.

        Raises:
          InputError: the reference lacks what a measure needs, or the network's weights are not
            there.
        """
        check_names(names, space, reference and reference.path)
        self._metrics = {name: _METRICS[name] for name in names}
        self._reference, self._real = reference, {}
        if reference is not None:
            self._real = _statistics(reference, space)
            self._check_reference(reference)
        self._eye = _Eye(space, batch_size)

    def check(self, shape: tuple[int, int, int, int]) -> None:
        """Raises InputError where samples [N, H, W, C] are too few, or of another size."""
        self._check_count(shape[0])
        if self._reference is not None:
            check_comparable(shape, self._reference)

    def __call__(self, samples: ImageFile) -> dict[str, float]:
        """Measures images; all processes call it, and get the same.

        Returns:
          Name -> value. `is` gives `inception_score` and its deviation over splits, `pr`
          `precision` and `recall`, `kid` itself and its deviation over subsets.

        Raises:
          InputError: the files do not fit each other, or one is broken.
        """
        if samples.shape is None:
            raise InputError(f"'{samples.path}' holds statistics and no images: give images first")
        self.check(samples.shape)
        # In lists and no sets: all processes must exchange what they saw in one order.
        needs = list(dict.fromkeys(metric.need for metric in self._metrics.values()))
        seen = self._eye(samples, needs)
        if self._reference is not None:
            missing = [n for n in needs if n.kind != "logits" and n not in self._real]
            self._real |= self._eye(self._reference, missing)
        found: dict[str, float] = {}
        for metric in self._metrics.values():
            values = metric.compute(seen[metric.need], self._real.get(metric.need))
            found |= dict(zip(metric.outputs, values, strict=True))
        return found

    def _check_reference(self, reference: ImageFile) -> None:
        if reference.shape is not None:
            check_bytes(reference)
            return self._check_count(reference.shape[0])
        for name, metric in self._metrics.items():
            if name != "is" and metric.need not in self._real:
                raise InputError(
                    f"'{reference.path}' holds statistics, and '{name}' needs images or others: "
                    f"take a reference with images, or leave '{name}' out"
                )

    def _check_count(self, count: int) -> None:
        for name, metric in self._metrics.items():
            if count < metric.fewest:
                raise InputError(
                    f"{count} images are too few for '{name}': it wants {metric.fewest} at least"
                )


def _statistics(reference: ImageFile, space: FeatureSpace) -> dict[_Need, Gaussian]:
    """What a reference brings, if it is of these features."""
    if not space.is_evaluators:
        return {}
    return {
        _Need(kind, False): Gaussian(reference.statistics[mean].ravel(), reference.statistics[cov])
        for kind, (mean, cov) in STATISTICS.items()
        if mean in reference.statistics
    }


class _Eye:
    """Looks at files of images, in batches of one shape, with a network that is loaded once."""

    def __init__(self, space: FeatureSpace, batch_size: int):
        self._space, self._params = space, space.load()
        self._devices = LocalDevices(batch_size)

        def see(params: Any, images: jax.Array, count: jax.Array) -> dict[str, jax.Array]:
            del count
            # Grey images are shown as RGB.
            return space(params, jnp.broadcast_to(images, (*images.shape[:3], 3)))

        self._see = self._devices.compile(see, self._params, batched=True)

    def __call__(self, images: ImageFile, needs: Sequence[_Need]) -> dict[_Need, Any]:
        """Gaussians and rows [N, D] of a file's features; all processes call it, and get all."""
        if not needs:
            return {}
        widths = self._widths(images)
        moments = {n: Moments.none(widths[n.kind]) for n in needs if not n.every}
        rows = {n: [np.zeros((0, widths[n.kind]), np.float32)] for n in needs if n.every}
        for features in _joined(self._batches(images)):
            for need in moments:
                moments[need] = moments[need].add(features[need.kind])
            for need, parts in rows.items():
                parts.append(features[need.kind])
        found = {need: part.of_all_processes().gaussian() for need, part in moments.items()}
        return found | {need: hosts.gather_rows(np.concatenate(p)) for need, p in rows.items()}

    def _widths(self, images: ImageFile) -> dict[str, int]:
        one = jax.ShapeDtypeStruct((1, *images.shape[1:3], 3), np.uint8)
        return {
            kind: x.shape[1] for kind, x in jax.eval_shape(self._space, self._params, one).items()
        }

    def _batches(self, images: ImageFile) -> Iterator[Features]:
        """The features of this process's share, a batch at a time."""
        mine = share_of(range(images.shape[0]))
        batches = images.batches(mine[0], mine[-1] + 1, self._devices.rows) if mine else ()
        with progress_bar() as progress:
            task = progress.add_task(f"looking at {images.path}", total=len(mine))
            for batch in batches:
                features = self._see(batch)
                yield {kind: np.asarray(x)[: len(batch)] for kind, x in features.items()}
                progress.advance(task, len(batch))


def _joined(batches: Iterable[Features]) -> Iterator[Features]:
    """Joins batches, as it takes as long to add one image to a covariance as hundreds."""
    waiting: list[Features] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(features["pool"]) for features in waiting) >= _JOINED:
            yield _concatenated(waiting)
            waiting = []
    if waiting:
        yield _concatenated(waiting)


def _concatenated(parts: list[Features]) -> Features:
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
