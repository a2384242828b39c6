"""What does an MoE layer cost, against a dense one of equal active FLOPs and a loop over experts?

Forward and backward, to the gradients of tokens and parameters. The experts are GELU perceptrons as
wide as the tokens times `--ratio`, top-k of E; the dense layer is k times as wide, so that it
multiplies as much. The loop is that of the authors' code, in PyTorch: for each expert, take its
tokens, apply it, put them back.

    python benchmarks/moe_layer.py [--cases 4096:8:2 ...] [--hidden 384] [--repeats 5]
    python benchmarks/moe_layer.py --device gpu --hidden 1024    # bfloat16; 65536:16:2 and others

Cases are tokens:experts:top-k. Needs torch.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
from typing import Any

import numpy as np
import report
from race import RaceError, race

CASES = {
    "cpu": ["2048:8:2", "8192:8:2", "8192:16:2", "8192:16:1"],
    "gpu": ["4096:16:2", "16384:16:2", "65536:16:2", "65536:8:2", "65536:64:4"],
}
DTYPES = {"cpu": "float32", "gpu": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Case:
    """Tokens of a width, and experts of a width in a dtype on a kind of device."""

    tokens: int
    experts: int
    top_k: int
    hidden: int
    ratio: float
    device: str
    dtype: str

    def inputs(self) -> np.ndarray:
        """Tokens [tokens, hidden]."""
        rng = np.random.default_rng(0)
        return rng.standard_normal((self.tokens, self.hidden), np.float32)

    @property
    def flops(self) -> float:
        """Of the experts, forward and backward."""
        return 3 * 2 * 2 * self.tokens * self.top_k * self.hidden**2 * self.ratio


def main() -> None:
    """Races the cases and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--cases", nargs="+", metavar="TOKENS:EXPERTS:K")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--ratio", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=3, help="passes a turn")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    results = [compare(text, options) for text in options.cases or CASES[options.device]]
    report.save(f"moe_layer-{options.device}", __doc__, results, options.out)


def compare(text: str, options: argparse.Namespace) -> dict:
    """Times all contestants of a case."""
    sizes = (int(number) for number in text.split(":"))
    shared = options.hidden, options.ratio, options.device, DTYPES[options.device]
    case = Case(*sizes, *shared)
    makers = {
        "dense": functools.partial(Ours, case, "dense"),
        "ragged": functools.partial(Ours, case, "ragged"),
        "capacity": functools.partial(Ours, case, "capacity"),
        "torch_loop": functools.partial(TorchLoop, case),
    }
    entries = race(makers, options.repeats, options.steps)
    result: dict[str, Any] = dataclasses.asdict(case)
    for name, entry in entries.items():
        result[name] = {"failed": entry.failed} if entry.failed else _row(entry.seconds, case)
    for name in ("ragged", "capacity"):
        for other in ("dense", "torch_loop"):
            if entries[name].failed or entries[other].failed:
                continue
            pairs = zip(entries[other].seconds, entries[name].seconds)
            ratios = [theirs / ours for theirs, ours in pairs]
            result[f"{name}_speed_over_{other}"] = {
                "median": round(statistics.median(ratios), 3),
                "lowest": round(min(ratios), 3),
                "highest": round(max(ratios), 3),
            }
    print(json.dumps(result), flush=True)
    return result


def _row(seconds: list[float], case: Case) -> dict[str, float]:
    median = statistics.median(seconds)
    spread = {"lowest": round(min(seconds), 5), "highest": round(max(seconds), 5)}
    speed = round(case.flops / median / 1e9)
    return {"seconds": round(median, 5), **spread, "gflops_per_second": speed}


class _Pass:
    """What the contestants share."""

    def check(self, total):
        if not np.isfinite(float(total)):
            raise RaceError(f"a sum of {float(total)}")

    def rest(self):
        """Keeps its memory."""

    def end(self):
        """Has nothing left to do."""


class Ours(_Pass):
    """dit_jax's layers."""

    def __init__(self, case: Case, kind: str):
        import jax
        import jax.numpy as jnp

        from dit_jax.layers.context import Context
        from dit_jax.layers.mlp import Mlp
        from dit_jax.moe import MlpExperts, MoE
        from dit_jax.moe.dispatch import Capacity, Ragged
        from dit_jax.moe.routers import TopKRouter

        self._jax = jax
        x = jnp.asarray(case.inputs(), case.dtype)[None]
        everyone = jnp.ones(1, bool)
        context = Context(x[:, 0], jnp.zeros(1), x[:, 0], everyone, (1, case.tokens), True)
        layer = Mlp(case.ratio * case.top_k)
        if kind != "dense":
            router = TopKRouter(experts=case.experts, top_k=case.top_k)
            dispatch = {"ragged": Ragged(), "capacity": Capacity()}[kind]
            layer = MoE(router, MlpExperts(case.ratio), dispatch=dispatch)
        params = jax.jit(lambda key: layer.init(key, x, context)["params"])(jax.random.key(0))

        def total(params, x):
            y, _ = layer.apply({"params": params}, x, context)
            return jnp.square(y.astype(jnp.float32)).sum()

        self._pass = jax.jit(jax.value_and_grad(total, (0, 1)))
        self._inputs = params, x
        self._last = None
        self.facts: dict[str, Any] = {}

    def send(self):
        self._last = self._pass(*self._inputs)
        return self._last[0]

    def wait(self):
        self._jax.block_until_ready(self._last)


class TorchLoop(_Pass):
    """A loop over experts in PyTorch, eager."""

    def __init__(self, case: Case):
        import torch

        torch.manual_seed(0)
        self._torch, self._case = torch, case
        device = "cuda" if case.device == "gpu" else "cpu"
        dtype = getattr(torch, case.dtype)
        hidden = int(case.hidden * case.ratio)
        make = functools.partial(torch.nn.Linear, device=device, dtype=dtype)
        self._experts = [
            torch.nn.Sequential(
                make(case.hidden, hidden), torch.nn.GELU("tanh"), make(hidden, case.hidden)
            )
            for _ in range(case.experts)
        ]
        self._gate = make(case.hidden, case.experts, bias=False)
        self._x = torch.from_numpy(case.inputs()).to(device, dtype).requires_grad_(True)
        self.facts: dict[str, Any] = {}

    def send(self):
        torch, x = self._torch, self._x
        weights, experts = self._gate(x).float().softmax(-1).topk(self._case.top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).flatten()
        rows = x.repeat_interleave(self._case.top_k, dim=0)
        y = torch.empty_like(rows)
        for number, expert in enumerate(self._experts):
            own = experts.flatten() == number
            y[own] = expert(rows[own])
        y = (y * weights[:, None].to(y.dtype)).view(len(x), self._case.top_k, -1).sum(1)
        total = y.float().square().sum()
        total.backward()
        return total.detach()

    def wait(self):
        if self._case.device == "gpu":
            self._torch.cuda.synchronize()


if __name__ == "__main__":
    main()
