"""What a model is made of: its modules, their parameters, FLOPs and place on a mesh."""

import dataclasses
import html
import io
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import rich.console
import rich.table
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from dit_jax.errors import InputError
from dit_jax.flops import forward_flops_by_scope
from dit_jax.models.inputs import abstract_parameters
from dit_jax.parallel.mesh import AXES, Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.sizes import count_active, count_parameters

_COLUMNS = ("module", "largest array", "parameters", "GFLOPs")


@dataclasses.dataclass(frozen=True)
class Row:
    """One module.

    Attributes:
      depth: modules around it.
      name: its name in the parameter tree.
      array: its largest own array, as its shape with the mesh axes that divide it.
      parameters: parameters in it and in the modules within.
      flops: FLOPs spent in it, and in the modules within, on one sample.
    """

    depth: int
    name: str
    array: str
    parameters: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """A model's modules as rows of a table; prints as text, and as HTML in a notebook.

    Attributes:
      rows: the model, and each module after the one it is in.
      notes: what holds for the whole model, a sentence each.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        table = rich.table.Table(box=None, pad_edge=False)
        for i, column in enumerate(_COLUMNS):
            table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*_cells(row, "  " * row.depth))
        text = io.StringIO()
        # Rich would show it at once in a notebook, and leave the text empty.
        console = rich.console.Console(file=text, width=200, force_jupyter=False)
        console.print(table, markup=False)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align: left'>{column}</th>" for column in _COLUMNS)
        body = "".join(_html_row(row) for row in self.rows)
        notes = "<br>".join(html.escape(note) for note in self.notes)
        return f"<table><tr>{head}</tr>{body}</table><p>{notes}</p>"


def summary(
    model: nn.Module,
    shape: tuple[int, int, int] = (32, 32, 4),
    mesh: Mesh | AbstractMesh | None = None,
) -> Summary:
    """Lists a model's modules with their parameters, true FLOPs and place on a mesh.

    Nothing is computed: shapes and FLOPs come from the traced program, so the largest model takes a
    second. The result prints as a table, in a notebook too.

    Args:
      model: the backbone.
      shape: shape [h, w, c] of one sample; by default the latents of an image of 256 px.
      mesh: a mesh of dit_jax: `Parallel(fsdp=8).abstract()` needs none of its devices.

    Raises:
      InputError: the mesh has other axes, or a size does not divide over it.
    """
    if mesh is not None and tuple(mesh.axis_names) != AXES:
        raise InputError(
            f"a mesh of axes {', '.join(mesh.axis_names)} is none of dit_jax's: make one with "
            "Parallel(...).mesh(), or .abstract() without its devices"
        )
    params = abstract_parameters(model, shape)
    layout = Layout(Parallel().abstract() if mesh is None else mesh)
    places = jax.tree.map(_Array, params, layout.parameters(params))
    root = _Module(type(model).__name__, places)
    for scope, flops in forward_flops_by_scope(model, params, shape).items():
        root.spend(scope, flops)
    notes = _notes(model, shape, layout, jax.tree.leaves(places))
    return Summary(tuple(root.rows()), tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Array:
    """A parameter's shape and where it lies."""

    value: jax.ShapeDtypeStruct
    sharding: NamedSharding

    @property
    def size(self) -> int:
        return math.prod(self.value.shape)

    @property
    def size_on_a_device(self) -> int:
        return math.prod(self.sharding.shard_shape(self.value.shape))

    def __str__(self) -> str:
        parts = map(self._divided, self.value.shape, self.sharding.spec)
        return " x ".join(parts)

    def _divided(self, size: int, axes: str | tuple[str, ...] | None) -> str:
        axes = (axes,) if isinstance(axes, str) else axes or ()
        long = [axis for axis in axes if self.sharding.mesh.shape[axis] > 1]
        return "/".join([str(size), *long])


class _Module:
    """A module of the parameter tree, and the FLOPs that are spent in it."""

    def __init__(self, name: str, tree: dict[str, Any]):
        self.name = name
        self.flops = 0
        self.used: list[str] = []
        self.arrays = [child for child in tree.values() if isinstance(child, _Array)]
        self.children = {
            key: _Module(key, child) for key, child in tree.items() if isinstance(child, dict)
        }

    def spend(self, scope: tuple[str, ...], flops: int) -> None:
        """Adds FLOPs to the modules that a scope goes through.

        A scope also names classes and methods ("Block", "experts.compute"), and all layers of a
        stack are one module "layers" whose scope is not named.
        """
        self.flops += flops
        while scope:
            first, scope = scope[0].split(".")[0], scope[1:]
            if first in self.children:
                if first not in self.used:
                    self.used.append(first)
                return self.children[first].spend(scope, flops)
            if list(self.children) == ["layers"]:
                return self.children["layers"].spend((first, *scope), flops)

    def rows(self, depth: int = 0, prefix: str = "") -> Iterator[Row]:
        """Yields this module and those within, in the order of use, those without FLOPs first.

        One that only holds another is joined with it.
        """
        name = prefix + self.name
        if depth and not self.arrays and len(self.children) == 1:
            (only,) = self.children.values()
            yield from only.rows(depth, name + "/")
            return
        largest = str(max(self.arrays, key=lambda array: array.size)) if self.arrays else ""
        yield Row(depth, name, largest, self.parameters, self.flops)
        free = [name for name in self.children if name not in self.used]
        for child in (*free, *self.used):
            yield from self.children[child].rows(depth + 1)

    @property
    def parameters(self) -> int:
        own = sum(array.size for array in self.arrays)
        return own + sum(child.parameters for child in self.children.values())


def _notes(
    model: nn.Module, shape: tuple[int, int, int], layout: Layout, arrays: list[_Array]
) -> Iterator[str]:
    total, active = count_parameters(model, shape), count_active(model, shape)
    frozen = model.frozen_parameters(shape)
    table = f", {frozen:,} of them a frozen position table" if frozen else ""
    yield f"{total:,} parameters{table}."
    if active < total:
        yield f"{active:,} are active: a token meets no others."
    size = " x ".join(str(n) for n in shape)
    yield f"FLOPs are of one forward pass on one sample of {size}; a multiply-add is 2."
    devices = layout.mesh.size
    if devices > 1:
        held = sum(array.size_on_a_device for array in arrays)
        yield f"Each of {devices} devices holds {held:,} parameters: {4 * held / 1e9:.3g} GB."


def _cells(row: Row, indent: str) -> tuple[str, ...]:
    flops = f"{row.flops / 1e9:,.3f}" if row.flops else ""
    return indent + row.name, row.array, f"{row.parameters:,}", flops


def _html_row(row: Row) -> str:
    name, array, *numbers = (html.escape(cell) for cell in _cells(row, ""))
    weight = "bold" if row.depth == 0 else "normal"
    style = f"text-align: left; font-weight: {weight}; padding-left: {1.2 * row.depth + 0.5}em"
    right = "".join(f"<td style='text-align: right'>{number}</td>" for number in numbers)
    return (
        f"<tr><td style='{style}'>{name}</td><td style='text-align: left'>{array}</td>{right}</tr>"
    )
