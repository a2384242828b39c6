"""What would the attention mechanisms cost on TPUs, against JAX's splash attention?

Asks the TPU compiler itself, ahead of time: no TPU is needed, but its compiler is (`pip install
libtpu`). Forward and gradients in one program, in bfloat16, of two heads of one sample, from tokens
[1, N, H * D] as projections write them: routing, layout and kernels. Says whether it compiles, in
what memory, and its cycles by the compiler's schedule (tpu_schedule.py says what that is worth).

    python benchmarks/attention_tpu.py [--chips v5e v6e] [--mechanisms llsa] [--cases 65536:64 ...]

Cases are tokens:width of a head, on square grids.
"""

import functools
import itertools
import json
import math
import unittest.mock

import report
import tpu_schedule

CASES = ("256:72", "4096:128", "16384:64", "65536:64")
HEADS = 2
# Bytes a second of a device's memory, and cycles a second, as published or derived from the
# published FLOPs: for the share of the bandwidth that linear attention uses. (TPU7x's clock is not
# known.)
BANDWIDTH = {"v5e": 819e9, "v5p": 2765e9, "v6e": 1640e9}
CLOCK = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}


def main() -> None:
    """Compiles all cases, saves the results and prints tables."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--chips", nargs="+", choices=tpu_schedule.TOPOLOGIES, default=list(tpu_schedule.TOPOLOGIES)
    )
    parser.add_argument("--mechanisms", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--cases", nargs="+", metavar="TOKENS:WIDTH", default=CASES)
    options = parser.parse_args()
    compiler = tpu_schedule.Compiler()
    try:
        results = list(measured(compiler, options))
    finally:
        compiler.close()
    report.save("attention_tpu", __doc__, results, options.out)
    print(table(results))
    print(growth(results))


def measured(compiler: tpu_schedule.Compiler, options):
    """One result a case, mechanism and chip."""
    for case in options.cases:
        tokens, width = (int(number) for number in case.split(":"))
        for name, mixer in mechanisms(tokens).items():
            if options.mechanisms and name not in ("full", *options.mechanisms):
                continue
            turns = turns_of(mixer, math.isqrt(tokens), width)
            for chip in options.chips:
                row = {"mechanism": name, "tokens": tokens, "width": width, "chip": chip}
                row |= compiled(compiler, mixer, math.isqrt(tokens), width, chip, turns)
                print(json.dumps(row), flush=True)
                yield row


def mechanisms(tokens: int) -> dict:
    """Splash attention, with blocks of 1024, and those of `attention.py` that differ in kernels."""
    from attention import mechanisms as all_of

    from dit_jax.attention import Full

    side = math.isqrt(tokens)
    alike = {"window", "grat"}  # CLEAR's kernel and lists, without its masks.
    return {
        name.split()[0]: Full("splash") if name == "full" else mixer
        for name, mixer in all_of(side).items()
        if name not in alike
    }


def compiled(compiler, mixer, side: int, width: int, chip: str, turns: dict[str, float]) -> dict:
    """Whether it compiles; bytes of temporaries; cycles of kernels and of everything."""
    import jax
    import jax.numpy as jnp

    def operator(q, k, v):
        heads = (x.reshape(1, side * side, HEADS, width) for x in (q, k, v))
        return mixer(*heads, (side, side)).reshape(q.shape)

    def program(q, k, v, cotangent):
        mixed, pull = jax.vjp(operator, q, k, v)
        return mixed, *pull(cotangent)

    x = jax.ShapeDtypeStruct((1, side * side, HEADS * width), jnp.bfloat16)
    try:
        found = compiler.compile(program, chip, x, x, x, x)
    except Exception as error:  # The compiler's reason is the result.
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    kernels = functools.partial(_turns, turns)
    operations = compiler.operations(found, kernels)
    row = {
        "temporary_mib": round(found.memory_analysis().temp_size_in_bytes / 2**20, 1),
        # Queries, keys, values and their cotangents, read or written once, and the same of outputs.
        "least_bytes": 8 * x.size * x.dtype.itemsize,
        "bytes": int(found.cost_analysis()["bytes accessed"]),
    }
    for direction, backward in (("forward", False), ("backward", True)):
        of = [op for op in operations if op.backward == backward]
        row[f"{direction}_kernels"] = round(sum(op.cycles for op in of if attends(op)))
        row[f"{direction}_all"] = round(sum(op.cycles for op in of))
    return row


def attends(operation: tpu_schedule.Operation) -> bool:
    """Whether it is a kernel of the attention itself, and not one that regroups tokens."""
    return operation.kernel and "cells" not in operation.name


def _turns(turns: dict[str, float], operation: str) -> float:
    return next((n for name, n in turns.items() if name in operation), 1.0)


def turns_of(mixer, side: int, width: int) -> dict[str, float]:
    """How often the block-sparse kernels' inner loops run, on average, for random tokens."""
    import jax
    import jax.numpy as jnp

    from dit_jax.kernels.block_sparse.tpu.key_gradient import KeySteps
    from dit_jax.kernels.block_sparse.tpu.plan import flatten_coarse, make_plan
    from dit_jax.kernels.block_sparse.tpu.tiles import QuerySteps

    seen = []

    def record(q, k, v, lists, *coarse):
        seen.append((q, k, lists, coarse))
        return jnp.zeros_like(q), jnp.zeros(q.shape[:3])

    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, side * side, 1, width), jnp.bfloat16)
    with unittest.mock.patch("dit_jax.attention.sparse.block_sparse_attention", record):
        if hasattr(mixer, "implementation"):  # Full attention has no lists.
            return {}
        mixer(q, k, v, (side, side))
    if not seen:
        return {}
    q, k, lists, coarse = seen[0]
    q, k = (x.reshape(-1, *x.shape[2:]) for x in (q, k))
    plan = make_plan(lists)
    queries = QuerySteps(q, k, plan, [flatten_coarse(c) for c in coarse])
    keys = KeySteps(q, k, plan)
    counts = plan.entries[0, :, 0].reshape(-1, queries.blocks).max(1)
    lengths = jnp.diff(keys.operands["starts"][0, 0]).reshape(-1, keys.blocks).max(1)
    return {
        "key_gradient": float(jnp.ceil(lengths / plan.queries_per_tile).mean()),
        "block_sparse": float(jnp.ceil(counts / plan.keys_per_tile).mean()),
    }


def table(results: list[dict]) -> str:
    """Splash attention's cycles over each mechanism's: kernels, and the whole operator."""
    of = {(r["mechanism"], r["tokens"], r["chip"]): r for r in results}
    lines = [
        "| mechanism | tokens | chip | kernels, forward | backward | all, forward | backward |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, tokens, chip), row in of.items():
        full = of.get(("full", tokens, chip), {})
        if name == "full":
            continue
        cells = ["forward_kernels", "backward_kernels", "forward_all", "backward_all"]
        ratios = [
            f"{full[cell] / row[cell]:.1f}" if row.get(cell) and full.get(cell) else "-"
            for cell in cells
        ]
        lines.append(f"| {name} | {tokens:,} | {chip} | {' | '.join(ratios)} |")
        if name == "linear" and chip in CLOCK and "failed" not in row:
            moved = 4 * HEADS * tokens * row["width"] * 2
            share = moved / BANDWIDTH[chip] / (row["forward_kernels"] / CLOCK[chip])
            print(f"linear, {tokens:,} tokens, {chip}: {min(1.0, share):.2f} of the bandwidth")
    return "\n".join(lines)


def growth(results: list[dict]) -> str:
    """Bytes over the least possible, and the exponent of their growth from size to size."""
    lines = []
    kinds = sorted({(r["mechanism"], r["chip"], r["width"]) for r in results if "failed" not in r})
    for kind in kinds:
        rows = [r for r in results if (r["mechanism"], r["chip"], r["width"]) == kind]
        rows = sorted((r for r in rows if "bytes" in r), key=lambda r: r["tokens"])
        for small, large in itertools.pairwise(rows):
            exponent = math.log(large["bytes"] / small["bytes"])
            exponent /= math.log(large["tokens"] / small["tokens"])
            share = large["bytes"] / large["least_bytes"]
            lines.append(
                f"{', '.join(map(str, kind))}: {share:.1f} times the least bytes at "
                f"{large['tokens']:,} tokens, N^{exponent:.2f} from {small['tokens']:,} on"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
