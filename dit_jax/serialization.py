"""Trees of configuration objects as JSON and back.

An object becomes {"class": "dit_jax.models.dit.DiT", "fields": {...}}. Only classes of dit_jax are
read back, by import and not by pickle, so a checkpoint from anywhere can be opened safely.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from typing import Any

import flax.linen as nn

from dit_jax.errors import InputError

_PLAIN = (str, int, float, bool, type(None))


def _fields(kind: type) -> dict[str, dataclasses.Field]:
    """The configuration fields of a class: a module's parent and name are not its own."""
    hidden = {"parent", "name"} if issubclass(kind, nn.Module) else set()
    return {f.name: f for f in dataclasses.fields(kind) if f.init and f.name not in hidden}


def children(value: Any) -> dict[str, Any]:
    """Returns the fields of an object, or the items of a tuple by number, else nothing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _fields(type(value))}
    if isinstance(value, tuple):
        return {str(i): item for i, item in enumerate(value)}
    return {}


def to_json(value: Any) -> Any:
    """Turns a tree of dataclasses, tuples and plain values into JSON values.

    Raises:
      InputError: a value of another type, which could not be read back.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    kind = type(value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise InputError(
            f"a configuration cannot hold {value!r}: fields are numbers, strings, booleans, None, "
            f"tuples and objects of dit_jax"
        )
    if not kind.__module__.startswith("dit_jax."):
        raise InputError(
            f"a configuration cannot hold a {kind.__qualname__} of '{kind.__module__}', for its "
            f"checkpoints open without running anybody's code: put the class into a file of the "
            f"dit_jax package"
        )
    fields = {name: to_json(child) for name, child in children(value).items()}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "fields": fields}


def from_json(value: Any) -> Any:
    """Inverse of `to_json`.

    Raises:
      InputError: a class or field that dit_jax does not have.
    """
    return _build(value, Any, "")


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Lists the fields in which two trees differ, as 'path: a -> b'."""
    if type(a) is type(b) and (inner := children(a)):
        other = children(b)
        if inner.keys() == other.keys():
            prefix = f"{path}." if path else ""
            return [d for k in inner for d in differences(inner[k], other[k], prefix + k)]
    return [] if a == b else [f"{path}: {_short(a)} -> {_short(b)}"]


def _short(value: Any) -> str:
    return type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)


def _build(value: Any, hint: Any, path: str) -> Any:
    if isinstance(value, dict):
        return _build_object(value, path)
    if isinstance(value, list):
        return tuple(_build(v, h, path) for v, h in zip(value, _item_hints(hint, value)))
    # JSON does not keep 4 and 4.0 apart, nor do hashes: the annotation does.
    wants_float = float in _alternatives(hint) and int not in _alternatives(hint)
    return float(value) if wants_float and type(value) is int else value


def _build_object(value: dict, path: str) -> Any:
    whole = value.keys() == {"class", "fields"}
    if not (whole and isinstance(value["class"], str) and isinstance(value["fields"], dict)):
        raise InputError(f"configuration at '{path or 'top'}' is not an object of dit_jax")
    kind = _find_class(value["class"])
    known = _fields(kind)
    for name in value["fields"]:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f": perhaps '{near[0]}'" if near else ""
            raise InputError(f"{kind.__name__} has no field '{name}'{hint}")
    for name, field in known.items():
        defaults = (field.default, field.default_factory)
        if name not in value["fields"] and set(defaults) == {dataclasses.MISSING}:
            raise InputError(f"{kind.__name__} lacks its field '{name}', which has no default")
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            name: _build(child, hints[name], f"{path}.{name}" if path else name)
            for name, child in value["fields"].items()
        }
    )


def _find_class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    if not module.startswith("dit_jax."):
        raise InputError(f"configuration names '{name}', which is not a class of dit_jax")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        kind = None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InputError(f"configuration names '{name}', which this version of dit_jax lacks")
    return kind


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _item_hints(hint: Any, items: list) -> list[Any]:
    for alternative in _alternatives(hint):
        if typing.get_origin(alternative) is tuple:
            args = typing.get_args(alternative)
            if len(args) == 2 and args[1] is Ellipsis:
                return [args[0]] * len(items)
            if len(args) == len(items):
                return list(args)
    return [Any] * len(items)
