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
from dit_jax.metrics.images import STATISTICS, ImageFile, check_comparable, check_distribution
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
    """What a measure is computed of, and the names of what comes out."""

    outputs: tuple[str, ...]
    need: _Need
    compute: Callable[[Any, Any], Iterable[float]]


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
    "pr": _Metric(("precision", "recall"), _Need("pool", True), precision_recall),
    "kid": _Metric(("kid", "kid_deviation"), _Need("pool", True), kernel_distance),
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
                f"'{name}' compares with a reference and there is none: give --reference FILE.npz, "
                f"as ADM publishes them"
            )


def measure(
    samples: ImageFile,
    reference: ImageFile | None,
    names: Sequence[str],
    space: FeatureSpace,
    batch_size: int = 64,
) -> dict[str, float]:
    """Measures images; processes share them, and each must see both files.

    Args:
      samples: what is measured.
      reference: what it is compared with; statistics that it brings are taken as they are.
      names: some of `space.measures`: fid, sfid, is, pr, kid of Inception's features.
      space: what is seen in an image.
      batch_size: images at once on each device.

    Returns:
      Name -> value. `is` gives `inception_score` and its deviation over splits, `pr` `precision`
      and `recall`, `kid` itself and its deviation over subsets.

    Raises:
      InputError: the files do not fit each other, or the network's weights are not there.
    """
    check_names(names, space, reference and reference.path)
    if reference is not None:
        check_comparable(samples, reference)
    metrics = [_METRICS[name] for name in names]
    # No set: all processes must exchange what they saw in one order.
    needs = list(dict.fromkeys(metric.need for metric in metrics))
    eye = _Eye(space, batch_size)
    seen, real = eye(samples, needs), {}
    if reference is not None:
        real = _statistics(reference, space)
        real |= eye(reference, [n for n in needs if n.kind != "logits" and n not in real])
    found: dict[str, float] = {}
    for metric in metrics:
        values = metric.compute(seen[metric.need], real.get(metric.need))
        found |= dict(zip(metric.outputs, values, strict=True))
    return found


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
        if images.shape is None:
            raise InputError(
                f"'{images.path}' holds statistics and no images, which this metric needs"
            )
        check_distribution(images)
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
