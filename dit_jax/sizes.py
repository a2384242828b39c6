"""How large a model is and what it costs."""

import math

import flax.linen as nn
import jax
import rich.console
import rich.table

from dit_jax.flops import forward_flops
from dit_jax.models.inputs import abstract_parameters
from dit_jax.presets import PRESETS, Preset


def count_parameters(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Counts parameters as the papers do, the frozen position table [N, D] included."""
    params = abstract_parameters(model, shape)
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return trained + model.frozen_parameters(shape)


def count_active(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Counts the parameters that one token meets: all but the experts it is not sent to."""
    params = abstract_parameters(model, shape)
    idle = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/experts/" in name:
            idle += math.prod(leaf.shape) * (1 - model.active_share(name))
    return count_parameters(model, shape) - round(idle)


def print_presets() -> None:
    """Prints a table of all presets."""
    table = rich.table.Table("model", title="one forward pass, one sample of 32 x 32 x 4 latents")
    for column in ("parameters", "active", "GFLOPs"):
        table.add_column(column, justify="right")
    for name, preset in PRESETS.items():
        table.add_row(name, *_row(preset))
    console = rich.console.Console()
    console.print(table)
    console.print("parameters include the frozen position table; a multiply-add is 2 FLOPs")


def _row(preset: Preset) -> list[str]:
    parameters = count_parameters(preset.model, preset.shape)
    active = count_active(preset.model, preset.shape)
    flops = forward_flops(preset.model, preset.shape)
    return [f"{parameters:,}", f"{active:,}", f"{flops / 1e9:,.2f}"]
