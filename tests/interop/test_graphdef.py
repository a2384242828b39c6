"""TensorFlow's graph of Inception-v3 gives the same parameters as PyTorch's file."""

import struct

import jax
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch
from dit_jax.interop.files import open_state_dict
from dit_jax.interop.layouts import LAYOUTS, choose_export
from dit_jax.interop.layouts.inception import graph_nodes

# Some of the pairs that torch-fidelity's conversion of the graph has.
PAIRS = {
    "conv": "Conv2d_1a_3x3",
    "conv_4": "Conv2d_4a_3x3",
    "mixed/conv": "Mixed_5b/branch1x1",
    "mixed/tower/conv_1": "Mixed_5b/branch5x5_2",
    "mixed_2/tower_1/conv_2": "Mixed_5d/branch3x3dbl_3",
    "mixed_2/tower_2/conv": "Mixed_5d/branch_pool",
    "mixed_3/conv": "Mixed_6a/branch3x3",
    "mixed_3/tower/conv_2": "Mixed_6a/branch3x3dbl_3",
    "mixed_6/conv": "Mixed_6d/branch1x1",
    "mixed_6/tower_1/conv_4": "Mixed_6d/branch7x7dbl_5",
    "mixed_8/tower/conv": "Mixed_7a/branch3x3_1",
    "mixed_8/tower_1/conv_3": "Mixed_7a/branch7x7x3_4",
    "mixed_9/tower/mixed/conv": "Mixed_7b/branch3x3_2a",
    "mixed_10/tower_1/mixed/conv_1": "Mixed_7c/branch3x3dbl_3b",
    "mixed_10/tower_2/conv": "Mixed_7c/branch_pool",
}


def varint(value):
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def node(name, operation, *attributes):
    entries = b"".join(field(5, field(1, b"value") + field(2, a)) for a in attributes)
    return field(1, field(1, name.encode()) + field(2, operation) + field(3, b"input") + entries)


def constant(name, value, numbers=None):
    """A node as TensorFlow writes it; `numbers` are written one by one instead of the bytes."""
    value = np.asarray(value, np.float32)
    shape = b"".join(field(2, field(1, size)) for size in value.shape)
    content = field(4, value.tobytes())
    if numbers is not None:
        content = b"".join(varint(5 << 3 | 5) + struct.pack("<f", x) for x in numbers)
    return node(name, b"Const", field(8, field(1, 1) + field(2, shape) + content))


def written(tmp_path, *nodes):
    path = tmp_path / "graph.pb"
    path.write_bytes(b"".join(nodes))
    return path


def test_constants_are_read_and_other_nodes_passed_over(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    integers = field(8, field(1, 3) + field(2, b"") + field(4, bytes(4)))
    path = written(
        tmp_path,
        constant("weights", values),
        node("conv", b"Relu", field(6, 1)),
        node("size", b"Const", integers),
        constant("Sub/y", 128.0),
        constant("one_by_one", np.zeros(3), numbers=[1, 2, 3]),
        constant("the_same", np.zeros((2, 2)), numbers=[7]),
    )
    tensors = {key: stored.read() for key, stored in open_state_dict(path).tensors.items()}
    assert tensors.keys() == {"weights", "Sub/y", "one_by_one", "the_same"}
    np.testing.assert_array_equal(tensors["weights"], values)
    assert tensors["Sub/y"] == 128 and tensors["Sub/y"].shape == ()
    assert tensors["one_by_one"].tolist() == [1, 2, 3]
    assert tensors["the_same"].tolist() == [[7, 7], [7, 7]]


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_a_truncated_graph_is_refused(tmp_path, kept):
    whole = constant("weights", np.ones((2, 300)))
    path = written(tmp_path, whole[:kept])
    with pytest.raises(InputError, match="is damaged or no TensorFlow graph") as caught:
        convert_from_torch(str(path), str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_constant_with_too_few_numbers_is_refused(tmp_path):
    path = written(tmp_path, constant("weights", np.zeros(5), numbers=[1, 2]))
    with pytest.raises(InputError, match=r"a constant of shape \(5,\) has 2 numbers"):
        open_state_dict(path)


def test_convolutions_have_the_names_that_torch_fidelity_gives_them():
    nodes = graph_nodes()
    assert len(nodes) == len(set(nodes.values())) == 94
    assert {node: path for path, node in nodes.items() if node in PAIRS} == PAIRS


def test_the_graph_gives_the_parameters_of_pytorchs_file(tmp_path):
    pytest.importorskip("torch")
    from dit_jax.interop.engine import by_path
    from tests.metrics.inception_pair import carried_over, make_pair

    twin, params = make_pair()
    renamed = {
        "kernel": "conv2d_params",
        "scale": "batchnorm/gamma",
        "bias": "batchnorm/beta",
        "mean": "batchnorm/moving_mean",
        "variance": "batchnorm/moving_variance",
    }
    nodes, graph = graph_nodes(), [constant("Sub/y", 128.0), constant("Mul/y", 1 / 128)]
    for path, value in by_path({key: x for key, x in params.items() if key != "fc"}).items():
        scope, leaf = path.rsplit("/", 1)
        graph.append(constant(f"{nodes[scope]}/{renamed[leaf]}", value))
    graph.append(constant("softmax/weights", params["fc"]["kernel"]))
    graph.append(constant("softmax/biases", twin.fc.bias.detach().numpy()))
    state = open_state_dict(written(tmp_path, *graph))
    (layout,) = (layout for layout in LAYOUTS if layout.matches(state.shapes))
    assert layout.name == "inception-graph"
    tensors = {key: stored.read() for key, stored in state.tensors.items()}
    same = jax.tree.map(np.array_equal, carried_over(layout, tensors), params)
    assert jax.tree.all(same)
    assert choose_export(layout.describe({}, {}), None).name == "inception"
