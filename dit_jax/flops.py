"""True FLOPs, counted from the program itself.

XLA's own analysis counts a loop's body once, which is short by the depth of a stack. Here every
matmul and convolution is counted as two FLOPs a multiply-add, a scan or the grid of a kernel as
often as it runs. (The papers' "GFLOPs" are multiply-adds: half of these.)
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.extend import core

from dit_jax.models.inputs import abstract_parameters, example_inputs

# Names of nested scopes, the outermost first.
Scope = tuple[str, ...]

# Dense bf16 FLOP/s of one device, as its maker states them, by `device_kind`.
PEAK_FLOPS = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def count_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """Counts the FLOPs of `function` at these arguments, which may be abstract."""
    return flops_by_scope(function, *args, **kwargs).total()


def flops_by_scope(function: Callable, *args: Any, **kwargs: Any) -> Counter[Scope]:
    """Counts FLOPs by the named scopes they are spent in, of which every Flax module opens one."""
    return _jaxpr_flops(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def forward_flops(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """FLOPs of one forward pass on one sample [h, w, c]."""
    return forward_flops_by_scope(model, abstract_parameters(model, shape), shape).total()


def forward_flops_by_scope(
    model: nn.Module, params: Any, shape: tuple[int, int, int]
) -> Counter[Scope]:
    """FLOPs of one forward pass on one sample [h, w, c] by scope; `params` may be abstract."""
    _, *inputs = example_inputs(shape)
    return flops_by_scope(model.apply, {"params": params}, *inputs)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> Counter[Scope]:
    total: Counter[Scope] = Counter()
    for equation in jaxpr.eqns:
        outer = tuple(filter(None, str(equation.source_info.name_stack).split("/")))
        for inner, flops in _equation_flops(equation).items():
            total[outer + inner] += flops
    return total


def _equation_flops(equation: core.JaxprEqn) -> Counter[Scope]:
    """FLOPs of an equation by the scopes within it."""
    name, params = equation.primitive.name, equation.params
    matmul = _matmul_flops(equation)
    if matmul:
        return Counter({(): matmul})
    if name == "cond":
        branches = [_jaxpr_flops(branch.jaxpr) for branch in _counted_branches(params)]
        return max(branches, key=Counter.total)
    times = 1
    if name == "scan":
        times = params["length"]
    if name == "pallas_call":
        times = math.prod(params["grid_mapping"].grid)
    total: Counter[Scope] = Counter()
    for jaxpr in _inner_jaxprs(params):
        total.update({scope: times * flops for scope, flops in _jaxpr_flops(jaxpr).items()})
    return total


def _matmul_flops(equation: core.JaxprEqn) -> int:
    """Two FLOPs a multiply-add of a matmul or convolution; 0 of anything else."""
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = [value.aval for value in equation.invars]
    output: Any = equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * output.size * math.prod(inputs[0].shape[axis] for axis in contracted)
    if name == "ragged_dot_general":
        return 2 * inputs[0].size * output.shape[-1]
    if name == "conv_general_dilated":
        features = params["dimension_numbers"].rhs_spec[0]
        return 2 * output.size * inputs[1].size // inputs[1].shape[features]
    return 0


def _counted_branches(params: dict[str, Any]) -> tuple[core.ClosedJaxpr, ...]:
    """All branches; of those that differ by platform the default, which no loop hides work in."""
    platforms = params.get("branches_platforms") or ()
    return (params["branches"][platforms.index(None)],) if None in platforms else params["branches"]


def _inner_jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    values = [v for p in params.values() for v in (p if isinstance(p, tuple | list) else (p,))]
    values = [v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in values]
    return [v for v in values if isinstance(v, core.Jaxpr)]
