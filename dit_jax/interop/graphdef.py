"""TensorFlow's frozen graphs: their float constants, read without TensorFlow.

A graph is a message in Protocol Buffers' wire format. Those of its nodes whose operation is `Const`
hold a tensor as an attribute; nothing else is looked at, and nothing runs.
"""

import functools
import math
import mmap
import pathlib
from collections.abc import Iterator

import numpy as np

from dit_jax.interop.stored import StoredTensor

# Numbers of the fields of GraphDef, NodeDef, AttrValue, TensorProto and TensorShapeProto.
_NODE = 1
_NAME, _OPERATION, _ATTRIBUTE = 1, 2, 5
_MAP_VALUE, _TENSOR = 2, 8
_DTYPE, _SHAPE, _CONTENT, _FLOATS = 1, 2, 4, 5
_DIMENSION, _SIZE = 2, 1
_FLOAT = 1
# Kinds of fields in the wire format, and the lengths of those that have one length.
_VARINT, _BYTES = 0, 2
_LENGTHS = {1: 8, 5: 4}

_Message = dict[int, list]


def load_graph(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Returns the float32 constants of a graph by the names of their nodes.

    Raises:
      ValueError: it is damaged or no graph.
    """
    with path.open("rb") as stream:
        data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    found = {}
    for node in map(_message, _message(data).get(_NODE, [])):
        if bytes(_last(node, _OPERATION)) == b"Const":
            for tensor in _tensors(node):
                if _last(tensor, _DTYPE, 0) == _FLOAT:
                    found[bytes(_last(node, _NAME)).decode()] = _stored(tensor)
    return found


def _tensors(node: _Message) -> Iterator[_Message]:
    for attribute in map(_message, node.get(_ATTRIBUTE, [])):
        for tensor in _message(_last(attribute, _MAP_VALUE)).get(_TENSOR, []):
            yield _message(tensor)


def _stored(tensor: _Message) -> StoredTensor:
    dimensions = map(_message, _message(_last(tensor, _SHAPE)).get(_DIMENSION, []))
    shape = tuple(_last(dimension, _SIZE, 0) for dimension in dimensions)
    # Either all the bytes in one, or a list of numbers, the last of which goes on.
    content = _last(tensor, _CONTENT) or b"".join(tensor.get(_FLOATS, []))
    count = len(content) // 4
    if len(content) % 4 or (count != math.prod(shape) and count != 1):
        raise ValueError(f"a constant of shape {shape} has {count} numbers")
    return StoredTensor(shape, "float32", functools.partial(_read, content, shape))


def _read(content: bytes | memoryview, shape: tuple[int, ...]) -> np.ndarray:
    numbers = np.frombuffer(content, "<f4")
    whole = len(numbers) == math.prod(shape)
    return numbers.reshape(shape) if whole else np.full(shape, numbers[0])


def _message(data: bytes | memoryview) -> _Message:
    """Takes a message apart: what each field holds, in order, by the field's number."""
    fields: _Message = {}
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind == _BYTES or kind in _LENGTHS:
            length = _LENGTHS.get(kind)
            if length is None:
                length, position = _varint(data, position)
            value, position = data[position : position + length], position + length
            if position > len(data):
                raise ValueError("it ends before its last field")
        else:
            raise ValueError(f"a field of kind {kind}")
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Reads a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while shift < 64:
        if position >= len(data):
            raise ValueError("it ends within a number")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")


def _last(message: _Message, number: int, default: int | bytes = b"") -> int | memoryview | bytes:
    """The value of a field that is there once; of several the last holds."""
    return message.get(number, [default])[-1]
