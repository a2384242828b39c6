"""The engine on tables of its own: what goes over comes back, bit for bit."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.errors import InputError
from dit_jax.interop.engine import by_path, make_plan, to_jax, to_torch
from dit_jax.interop.rules import (
    Carried,
    Fixed,
    Rule,
    fused_qkv,
    linear,
    merge_heads,
    patch_embed,
    separate_qkv,
    tensor,
)

sizes = st.integers(1, 4)


@st.composite
def tables(draw):
    """A table of every kind of rule, the shapes of its parameters, and its layers' first number."""
    depth, heads, head, patch, channels = (draw(sizes) for _ in range(5))
    hidden, wide, first = heads * head, draw(sizes), draw(st.integers(0, 2))
    bias = draw(st.booleans())
    block = {"first": first}
    entries = [
        *patch_embed("embed", "embed", patch),
        *linear("head", "head", bias=bias),
        *linear("blocks.{i}.fc", "blocks/fc", **block),
        *fused_qkv("blocks.{i}.qkv", "blocks/qkv", heads, bias=bias, **block),
        *separate_qkv([f"blocks.{{i}}.{x}" for x in "qkv"], "blocks/split", heads, **block),
        *merge_heads("blocks.{i}.out", "blocks/out", heads, **block),
        *linear("blocks.{i}.shared", "shared", tied=depth, first=first),
        tensor("table", "table"),
        Fixed("sines", np.arange(3, dtype=np.float32), "computed"),
    ]
    shapes = {
        "embed/kernel": (patch * patch * channels, hidden),
        "embed/bias": (hidden,),
        "head/kernel": (hidden, wide),
        "blocks/fc/kernel": (depth, hidden, wide),
        "blocks/fc/bias": (depth, wide),
        "blocks/qkv/kernel": (depth, hidden, 3, heads, head),
        "blocks/split/kernel": (depth, hidden, 3, heads, head),
        "blocks/split/bias": (depth, 3, heads, head),
        "blocks/out/kernel": (depth, heads, head, hidden),
        "blocks/out/bias": (depth, hidden),
        "shared/kernel": (hidden, wide),
        "shared/bias": (wide,),
        "table": (wide, hidden),
    }
    if bias:
        shapes |= {"head/bias": (wide,), "blocks/qkv/bias": (depth, 3, heads, head)}
    return entries, nested(shapes)


def nested(shapes):
    tree = {}
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jax.ShapeDtypeStruct(shape, np.float32)
    return tree


def random_parameters(abstract, seed):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype)  # noqa: E731
    return by_path(jax.tree.map(draw, abstract))


def state_dict_of(entries, abstract, parameters):
    def read(path, layer):
        return parameters[path] if layer is None else parameters[path][layer]

    dtypes = {path: leaf.dtype for path, leaf in parameters.items()}
    listed = list(to_torch(entries, abstract, dtypes, read))
    tensors = {one.key: np.array(one.make()) for one in listed}
    assert len(tensors) == len(listed)
    assert all(tensors[one.key].shape == one.shape for one in listed)
    return tensors


def parameters_of(entries, abstract, tensors, fresh=()):
    shapes = {key: value.shape for key, value in tensors.items()}
    plan = make_plan(entries, shapes, abstract, fresh)
    found = {
        path: np.full(leaf.shape, np.nan, leaf.dtype) for path, leaf in by_path(abstract).items()
    }

    def write(path, layer, value):
        found[path][... if layer is None else layer] = value

    for _ in to_jax(plan, tensors.__getitem__, write):
        pass
    return found


@settings(max_examples=30, deadline=None)
@given(tables(), st.integers(0, 2**32 - 1))
def test_there_and_back(table, seed):
    entries, abstract = table
    parameters = random_parameters(abstract, seed)
    tensors = state_dict_of(entries, abstract, parameters)
    again = parameters_of(entries, abstract, tensors)
    assert again.keys() == parameters.keys()
    for path, value in parameters.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)
    back = state_dict_of(entries, abstract, again)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_a_linear_layer_is_transposed_and_layers_are_stacked():
    abstract = nested({"blocks/fc/kernel": (2, 3, 4), "blocks/fc/bias": (2, 4)})
    weights = [np.arange(12.0, dtype=np.float32).reshape(4, 3) + 100 * i for i in range(2)]
    tensors = {f"blocks.{i}.fc.weight": weight for i, weight in enumerate(weights)}
    tensors |= {f"blocks.{i}.fc.bias": np.full(4, i, np.float32) for i in range(2)}
    found = parameters_of(linear("blocks.{i}.fc", "blocks/fc"), abstract, tensors)
    np.testing.assert_array_equal(found["blocks/fc/kernel"], [weights[0].T, weights[1].T])
    np.testing.assert_array_equal(found["blocks/fc/bias"], [[0] * 4, [1] * 4])


def test_a_stack_may_begin_at_a_later_layer():
    abstract = nested({"head": (2, 3)})
    tensors = {f"blocks.{i}": np.full(3, i, np.float32) for i in (4, 5)}
    found = parameters_of([tensor("blocks.{i}", "head", first=4)], abstract, tensors)
    np.testing.assert_array_equal(found["head"], [[4] * 3, [5] * 3])


def test_the_report_says_what_happens_to_every_tensor():
    abstract = nested({"a": (3,), "b": (2, 3, 4), "c": (3,), "d": (1,)})
    entries = [
        tensor("a", "a"),
        tensor("b.{i}", "b", "o i -> i o"),
        tensor("c.{i}", "c", tied=2),
        tensor("d", "d"),
        Fixed("e", np.zeros(1), "zero"),
        Carried(r"f\..*", "unused"),
    ]
    shapes = {"a": (3,), "b.0": (4, 3), "b.1": (4, 3), "c.0": (3,), "c.1": (3,)}
    plan = make_plan(entries, shapes | {"e": (1,), "f.1": (9,)}, abstract, fresh=["d"])
    assert plan.report() == [
        "1 tensor copied",
        "2 tensors rearranged, stacked",
        "2 tensors tied",
        "checked e: zero",
        "kept aside f.1: unused",
        "initialised anew d",
    ]


def test_a_parameter_without_a_rule_is_a_problem():
    with pytest.raises(InputError, match="1 problem: no rule for b"):
        make_plan([tensor("a", "a")], {"a": (1,)}, nested({"a": (1,), "b": (1,)}))


def test_copies_that_differ_are_refused():
    abstract = nested({"a": (1,)})
    tensors = {"a.0": np.zeros(1, np.float32), "a.1": np.ones(1, np.float32)}
    with pytest.raises(InputError, match=r"a\.1 differs from a\.0"):
        parameters_of([Rule(("a.{i}",), "a", tied=2)], abstract, tensors)
