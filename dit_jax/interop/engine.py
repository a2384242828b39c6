"""Matches a state dict with a tree of parameters, and carries tensors across, either way."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dit_jax.errors import InputError
from dit_jax.interop.layout import Shapes
from dit_jax.interop.rules import Carried, Entry, Fixed, Rule

# Tables of sines come from libraries that round differently, some of them already the angles.
_FIXED_TOLERANCE = 1e-5
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Piece:
    """One layer of a parameter, or a whole parameter, and the keys it is made of."""

    rule: Rule
    layer: int | None
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What goes where.

    Attributes:
      pieces: parameters, layer by layer.
      fixed: tensors that the model computes.
      carried: keys that are kept beside the parameters, with the reason.
      fresh: parameters that the file does not fill and that are initialised anew.
    """

    pieces: tuple[Piece, ...]
    fixed: tuple[Fixed, ...]
    carried: dict[str, str]
    fresh: tuple[str, ...]

    def report(self) -> list[str]:
        """One line for every kind of thing that happens, and one a tensor that is no parameter."""
        counts = collections.Counter()
        for piece in self.pieces:
            counts[piece.rule.action] += len(piece.keys)
        lines = [f"{_count(n, 'tensor')} {action}" for action, n in sorted(counts.items())]
        lines += [f"checked {fixed.key}: {fixed.reason}" for fixed in self.fixed]
        lines += [f"kept aside {key}: {reason}" for key, reason in self.carried.items()]
        return lines + [f"initialised anew {path}" for path in self.fresh]


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """A tensor that has not been made yet."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by paths such as `blocks/layers/ffn/fc1/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def make_plan(
    entries: Iterable[Entry], shapes: Shapes, abstract: Any, fresh: Iterable[str] = ()
) -> Plan:
    """Decides what becomes of every tensor and where every parameter comes from.

    Args:
      entries: the family's table.
      shapes: the file's tensors.
      abstract: shapes of the parameters.
      fresh: beginnings of paths that are to be initialised anew.

    Raises:
      InputError: lists everything that does not fit: missing, unexpected and of another shape.
    """
    entries, fresh = list(entries), tuple(fresh)
    targets = by_path(abstract)
    unused = set(shapes)
    paths = [entry.path for entry in entries if isinstance(entry, Rule)]
    if unknown := [path for path in paths if path not in targets]:
        raise InputError(f"the table has rules for parameters that are not there: {unknown}")
    problems: list[str] = []
    pieces: list[Piece] = []
    for rule in (entry for entry in entries if isinstance(entry, Rule)):
        for piece in _pieces(rule, targets[rule.path].shape):
            unused.difference_update(piece.keys)
            if not rule.path.startswith(fresh):
                problems += _complaints(piece, targets[rule.path].shape, shapes)
                pieces.append(piece)
    fixed = tuple(e for e in entries if isinstance(e, Fixed) and e.key in shapes)
    unused -= {entry.key for entry in fixed}
    carried = {
        key: entry.reason
        for entry in entries
        if isinstance(entry, Carried)
        for key in sorted(unused)
        if re.fullmatch(entry.pattern, key)
    }
    problems += [f"unexpected {key} {shapes[key]}" for key in sorted(unused - carried.keys())]
    problems += [f"no parameter begins with {f}" for f in fresh if not _any_begins(targets, f)]
    unfilled = sorted(targets.keys() - {piece.rule.path for piece in pieces})
    problems += [f"no rule for {path}" for path in unfilled if not path.startswith(fresh)]
    if problems:
        raise InputError(_roll_up(problems))
    return Plan(tuple(pieces), fixed, carried, tuple(unfilled))


def to_jax(
    plan: Plan, read: Callable[[str], np.ndarray], write: Callable[[str, int | None, Any], None]
) -> Iterator[str]:
    """Carries tensors into parameters, one at a time.

    Args:
      plan: what goes where.
      read: reads a tensor of the state dict.
      write: takes a parameter's path, layer (None for all of it) and value.

    Yields:
      The path that was written, once a piece.

    Raises:
      InputError: a value is not finite, copies that should be equal are not, or a fixed tensor is
        another one than the model computes.
    """
    problems = []
    for fixed in plan.fixed:
        value = read(fixed.key)
        if value.shape != fixed.value.shape or np.abs(value - fixed.value).max() > _FIXED_TOLERANCE:
            problems.append(f"{fixed.key} is not what this model computes ({fixed.reason})")
    for piece in plan.pieces:
        tensors = [np.asarray(read(key)) for key in piece.keys]
        problems += [
            f"{key} holds values that are not finite"
            for key, value in zip(piece.keys, tensors)
            if not np.isfinite(value.astype(np.float32)).all()
        ]
        if piece.rule.tied:
            problems += _untied(piece, tensors)
            tensors = tensors[: len(piece.rule.source)]
        write(piece.rule.path, piece.layer, piece.rule.to_jax(tensors))
        yield piece.rule.path
    if problems:
        raise InputError(_roll_up(problems))


def to_torch(
    entries: Iterable[Entry],
    abstract: Any,
    dtypes: Mapping[str, np.dtype],
    read: Callable[[str, int | None], np.ndarray],
) -> Iterator[TorchTensor]:
    """Lists the tensors of a model's state dict.

    Args:
      entries: the family's table.
      abstract: shapes of the parameters.
      dtypes: dtypes of the parameters, by path.
      read: reads a parameter by its path, one layer or all of it (None).
    """
    entries, targets = list(entries), by_path(abstract)
    ruled = {entry.path for entry in entries if isinstance(entry, Rule)}
    if left := sorted(targets.keys() - ruled):
        raise InputError(_roll_up([f"no rule for {path}" for path in left]))

    @functools.lru_cache(maxsize=1)  # Tensors of one piece, a layer's experts say, come in turn.
    def tensors(piece: Piece) -> list[np.ndarray]:
        return piece.rule.to_torch(read(piece.rule.path, piece.layer))

    for entry in entries:
        if isinstance(entry, Fixed):
            value = entry.value
            yield TorchTensor(entry.key, value.shape, value.dtype, lambda value=value: value)
        elif isinstance(entry, Rule):
            for piece in _pieces(entry, targets[entry.path].shape):
                shapes = _expected(piece, targets[entry.path].shape)
                for number, (key, shape) in enumerate(zip(piece.keys, shapes)):
                    one = number % len(entry.source)
                    make = lambda piece=piece, one=one: tensors(piece)[one]  # noqa: E731
                    yield TorchTensor(key, shape, dtypes[entry.path], make)


def _pieces(rule: Rule, shape: tuple[int, ...]) -> list[Piece]:
    layers = range(shape[0]) if rule.stacked else [None]
    return [Piece(rule, layer, rule.keys(layer)) for layer in layers]


def _expected(piece: Piece, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of a piece's tensors, given the shape of its parameter."""
    shapes = piece.rule.source_shapes(shape if piece.layer is None else shape[1:])
    return shapes * (len(piece.keys) // len(shapes))


def _complaints(piece: Piece, shape: tuple[int, ...], shapes: Shapes) -> list[str]:
    return [
        f"missing {key} {expected}"
        if key not in shapes
        else f"{key} is {shapes[key]} and should be {expected} ({piece.rule.path})"
        for key, expected in zip(piece.keys, _expected(piece, shape))
        if shapes.get(key) != expected
    ]


def _any_begins(paths: Iterable[str], prefix: str) -> bool:
    return any(path.startswith(prefix) for path in paths)


def _untied(piece: Piece, tensors: list[np.ndarray]) -> list[str]:
    count = len(piece.rule.source)
    return [
        f"{key} differs from {piece.keys[number % count]}, and this model has one for both"
        for number, key in enumerate(piece.keys)
        if not np.array_equal(tensors[number], tensors[number % count])
    ]


def _roll_up(problems: list[str]) -> str:
    """All problems in one line, the first of them in full."""
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    remedy = " (--reinitialise PATH starts a parameter anew)" if "should be" in shown else ""
    return f"{_count(len(problems), 'problem')}: {shown}{more}{remedy}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
