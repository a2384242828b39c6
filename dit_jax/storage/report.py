"""A checkpoint's contents for people and for programs."""

import json
from typing import Any

from dit_jax.storage.contents import Stored, StoredArray, StoredItem


def as_dict(stored: Stored) -> dict[str, Any]:
    """Contents as JSON's types, sizes in bytes."""
    return {
        "path": stored.path,
        "step": stored.step,
        "items": {
            name: {
                "bytes": item.bytes,
                "files": item.files,
                "bytes_on_disk": item.bytes_on_disk,
                "mesh": item.mesh,
                "arrays": {path: _array_dict(array) for path, array in item.arrays.items()},
            }
            for name, item in stored.items.items()
        },
        "metadata": stored.metadata,
    }


def _array_dict(array: StoredArray) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "bytes": array.bytes,
        "chunk": list(array.chunk),
        "chunks": array.chunks,
        "spec": array.spec,
    }


def print_contents(stored: Stored, as_json: bool = False) -> None:
    """Prints contents as indented trees, or as JSON."""
    if as_json:
        print(json.dumps(as_dict(stored), indent=2))
        return
    print(f"{stored.path}: step {stored.step}")
    for name, item in stored.items.items():
        print(f"{name}: {describe_item(item)}")
        print_tree(item.tree, 1)
    print_tree(stored.metadata, 0)


def print_tree(tree: Any, depth: int) -> None:
    """Prints a tree of arrays, or of configuration objects as JSON has them, a line each leaf."""
    named = enumerate(tree) if isinstance(tree, list) else tree.get("fields", tree).items()
    for name, value in named:
        inner = isinstance(value, (dict, list)) and not _is_flat(value)
        print(f"{'  ' * depth}{name}{_label(value, inner)}")
        if inner:
            print_tree(value, depth + 1)


def _label(value: Any, inner: bool) -> str:
    """What stands behind a name."""
    if isinstance(value, StoredArray):
        return f"  {describe_array(value)}"
    if not inner:
        return f": {json.dumps(value)}"
    kind = value.get("class") if isinstance(value, dict) else None
    return f": {kind.rpartition('.')[2]}" if isinstance(kind, str) else ""


def _is_flat(value: Any) -> bool:
    """Whether it is a list that fits on a line."""
    return isinstance(value, list) and not any(
        isinstance(x, (dict, list, StoredArray)) for x in value
    )


def describe_item(item: StoredItem) -> str:
    """One line: how much there is, in memory and on disk, and from which mesh."""
    line = f"{len(item.arrays)} arrays, {size(item.bytes)}"
    line += f"; on disk {size(item.bytes_on_disk)} in {item.files} files"
    return line + (f"; saved on {describe_mesh(item.mesh)}" if item.mesh else "")


def describe_array(array: StoredArray) -> str:
    """One line: shape, dtype, size, parts, and which mesh axes divided it."""
    line = f"[{_sizes(array.shape)}] {array.dtype.name}, {size(array.bytes)}"
    if array.chunks > 1:
        line += f" in {array.chunks} parts of [{_sizes(array.chunk)}]"
    if any(array.spec or ()):
        line += f", divided ({', '.join('+'.join(axes) or '-' for axes in array.spec)})"
    return line


def describe_mesh(mesh: dict[str, int]) -> str:
    """The mesh's axes that are longer than one device."""
    return " x ".join(f"{axis}={n}" for axis, n in mesh.items() if n > 1) or "one device"


def size(count: int) -> str:
    """Bytes in the unit that suits them: kB is 1,000 of them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count} B"


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
