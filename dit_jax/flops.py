"""True FLOPs, counted from the program itself.

XLA's own analysis counts a loop's body once, which is short by the depth of a stack. Here every
matmul and convolution is counted as two FLOPs a multiply-add, a scan or the grid of a kernel as
often as it runs. (The papers' "GFLOPs" are multiply-adds: half of these.)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from dit_jax.models.inputs import example_inputs

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
    return _jaxpr_flops(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def forward_flops(model: Any, shape: tuple[int, int, int]) -> int:
    """FLOPs of one forward pass on one sample [h, w, c]."""
    key, *inputs = example_inputs(shape)
    params = jax.eval_shape(model.init, key, *inputs)
    return count_flops(model.apply, params, *inputs)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracted)
    if name == "ragged_dot_general":
        rows, width = equation.invars[0].aval.shape
        return 2 * rows * width * equation.outvars[0].aval.shape[-1]
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = params["dimension_numbers"].rhs_spec[0]
        return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[features]
    if name == "cond":
        return max(_jaxpr_flops(branch.jaxpr) for branch in _counted_branches(params))
    inner = sum(_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params))
    if name == "pallas_call":
        return inner * math.prod(params["grid_mapping"].grid)
    return inner * params["length"] if name == "scan" else inner


def _counted_branches(params: dict[str, Any]) -> tuple[core.ClosedJaxpr, ...]:
    """All branches; of those that differ by platform the default, which no loop hides work in."""
    platforms = params.get("branches_platforms") or ()
    return (params["branches"][platforms.index(None)],) if None in platforms else params["branches"]


def _inner_jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    values = [v for p in params.values() for v in (p if isinstance(p, tuple | list) else (p,))]
    values = [v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in values]
    return [v for v in values if isinstance(v, core.Jaxpr)]
