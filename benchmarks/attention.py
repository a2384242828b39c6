"""From how many tokens on do sparse and linear attention pay, and how do they grow?

Against full attention (on a CPU XLA's einsums, on a GPU cuDNN's kernel), forward alone and with the
gradients of queries, keys and values, tokens on a square grid. FLOPs are counted from the programs
at 1,024 to 65,536 tokens, with the exponent of their growth from each size to the next.

    python benchmarks/attention.py [--sides 32 64] [--heads 2] [--width 64] [--turns 5]
    python benchmarks/attention.py --device gpu --sides 64 128 256    # bfloat16
    python benchmarks/attention.py --sides                            # FLOPs alone
"""

import argparse
import functools
import json
import os
import statistics
from typing import Any

import numpy as np
import report
from race import RaceError, race

GROWTH = (32, 64, 128, 256)
DTYPES = {"cpu": "float32", "gpu": "bfloat16"}


def main() -> None:
    """Counts FLOPs, races all mechanisms at each size, and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--sides", nargs="*", type=int, default=[32, 64], help="of the grids")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--turns", type=int, default=5, help="of each contestant")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    results: dict[str, Any] = {"flops": [growth(name, options.width) for name in mechanisms(256)]}
    for side in options.sides:
        for gradient in (False, True):
            results[f"{side} x {side}, {'gradient' if gradient else 'forward'}"] = compare(
                side, gradient, options
            )
    report.save(f"attention-{options.device}", __doc__, results, options.out)


def mechanisms(side: int) -> dict:
    """The mechanisms on a grid of such a side; LLSA with two levels where its paper has them."""
    from dit_jax import attention

    return {
        "full": attention.Full(),
        "llsa": attention.LLSA(levels=2 if side >= 128 else 1),
        "pisa 0.1": attention.PISA(density=0.1),
        "clear 16": attention.CLEAR(radius=16),
        "window": attention.TileWindow(tile=(16, 16), window=(3, 3)),
        "grat": attention.GRAT(cell=(16, 16)),
        "linear": attention.LinearAttention(),
    }


def growth(name: str, width: int) -> dict:
    """FLOPs of one head at each size, and the exponents of their growth with the tokens."""
    import jax

    from dit_jax.flops import count_flops

    flops = {}
    for side in GROWTH:
        x = jax.ShapeDtypeStruct((1, side * side, 1, width), np.float32)
        mixer = mechanisms(side)[name]
        flops[side * side] = count_flops(functools.partial(mixer, grid=(side, side)), x, x, x)
    steps = np.diff(np.log(list(flops.values()))) / np.diff(np.log(list(flops)))
    found = {"mechanism": name, "flops": flops, "exponents": steps.round(3).tolist()}
    print(json.dumps(found), flush=True)
    return found


def compare(side: int, gradient: bool, options: argparse.Namespace) -> dict:
    """Seconds of each mechanism, and the speed-up over full attention, turn by turn."""
    shape = 1, side * side, options.heads, options.width
    makers = {
        name: functools.partial(Pass, name, side, shape, DTYPES[options.device], gradient)
        for name in mechanisms(side)
    }
    entries, result = race(makers, options.turns, 2), {}
    for name, entry in entries.items():
        if entry.failed or entries["full"].failed:
            result[name] = {"failed": entry.failed or "full attention did"}
            continue
        pairs = zip(entries["full"].seconds, entry.seconds, strict=True)
        ratios = [full / own for full, own in pairs]
        result[name] = {
            "seconds": round(statistics.median(entry.seconds), 5),
            "speed_over_full": round(statistics.median(ratios), 2),
            "lowest": round(min(ratios), 2),
            "highest": round(max(ratios), 2),
        }
    print(f"{side} x {side}", "gradient" if gradient else "forward", json.dumps(result), flush=True)
    return result


class Pass:
    """One mechanism's forward pass, or its gradients."""

    def __init__(self, name: str, side: int, shape: tuple, dtype: str, gradient: bool):
        import jax
        import jax.numpy as jnp

        self._jax, mixer = jax, mechanisms(side)[name]
        x = np.random.default_rng(0).standard_normal((3, *shape), np.float32)
        self._inputs = [jnp.asarray(part, dtype) for part in x]

        def total(q, k, v):
            return mixer(q, k, v, (side, side)).astype(jnp.float32).sum()

        self._pass = jax.jit(jax.value_and_grad(total, (0, 1, 2)) if gradient else total)
        self._last = None
        self.facts: dict[str, Any] = {}

    def send(self):
        self._last = self._pass(*self._inputs)
        return self._last

    def wait(self):
        self._jax.block_until_ready(self._last)

    def check(self, result):
        value = float(self._jax.tree.leaves(result)[0])
        if not np.isfinite(value):
            raise RaceError(f"a sum of {value}")

    def rest(self):
        """Keeps its memory."""

    def end(self):
        """Has nothing left to do."""


if __name__ == "__main__":
    main()
