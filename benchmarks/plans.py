"""What would the large runs take? Each step, compiled by the TPU's own compiler; needs no TPU.

    python benchmarks/plans.py            # plans that are not in the results yet
    python benchmarks/plans.py --again    # all of them

Writes benchmarks/results/plans.json and docs/plans.md. Needs libtpu (docs/planning.md).
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import tyro

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plans.json"
PAGE = ROOT / "docs" / "plans.md"

EXPERTS = "--parallel fsdp+ep --parallel.expert 16"
# Configuration, slice, options.
PLANS = (
    ("dit_xl_imagenet256", "v5e:4x4", "--parallel fsdp"),
    ("dit_xl_imagenet256", "v6e:2x4", "--parallel fsdp"),
    ("dit_moe_g_imagenet256", "v5p:4x4x4", f"{EXPERTS} --model.remat full"),
    ("dit_moe_g_imagenet256", "v5p:4x4x4", EXPERTS),
    ("dit_moe_g_imagenet256", "v5e:16x16", f"{EXPERTS} --model.remat full"),
    ("dit_moe_g_imagenet256", "v6e:8x8", f"{EXPERTS} --model.remat full"),
    ("dit_moe_g_imagenet512", "v5p:4x4x4", EXPERTS),
    ("dit_moe_g_imagenet512", "v5e:16x16", EXPERTS),
    ("dit_moe_g_imagenet512", "v6e:8x8", f"{EXPERTS} --model.remat full"),
    ("promoe_xl_imagenet256", "v5e:4x8", "--parallel fsdp"),
    ("dit_moe_g_imagenet256", "v5e:4x4", "--parallel fsdp --model.remat full"),
)

HEADER = """# Plans of large runs

Written by `python benchmarks/plans.py`, which compiles each step for a slice that is not there
([how to read it](planning.md)). No TPU was at hand: memory is what the compiler says, and times are
estimates from published peaks that have never been compared with a chip, between all work at once
and one thing after another.

| run | slice | mesh | GiB a device | of | GB exchanged | ms a step | MFU | compiled in |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def plan(config: str, topology: str, options: str) -> dict:
    """Runs one plan in a process of its own."""
    command = ["-m", "dit_jax", "plan", f"configs/{config}.py", "--topology", topology, "--json"]
    found = subprocess.run(
        [sys.executable, *command, *options.split()], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode == 2 or not found.stdout:
        raise SystemExit(f"{config} on {topology}: {found.stderr.strip().splitlines()[-1]}")
    return json.loads(found.stdout)


def row(key: str, found: dict) -> str:
    """One line of the table."""
    config, topology, options = key.split("|")
    mesh = " x ".join(f"{name}={n}" for name, n in found["mesh"].items() if n > 1)
    verdict, compiled, times = found["verdict"], found["compiled"], found["times"]
    start = f"| `{config}` {found['batch_size']} images `{options}` | {topology} | {mesh} |"
    spare = verdict["bytes"] / 2**30
    if compiled is None:
        return f"{start} does not fit, by at least {-spare:.2f} GiB | | | | | |"
    total = compiled["memory"]["total"] / 2**30
    sent = sum(c["bytes"] for c in found["exchanged"]) / 1e9
    if not verdict["fits"]:
        return f"{start} {total:.2f}: does not fit | {total + spare:.2f} | {sent:.1f} | | | |"
    low, mid, high = (times[name] * 1e3 for name in ("fastest", "estimate", "slowest"))
    return (
        f"{start} {total:.2f} | {total + spare:.2f} | {sent:.1f} | {mid:,.0f} ({low:,.0f} to "
        f"{high:,.0f}) | {found['mfu']:.0%} | {compiled['seconds']:.0f} s, "
        f"{compiled['ram'] / 1e9:.1f} GB |"
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """Plans of large runs.

    Attributes:
      again: also those that are in the results.
    """

    again: bool = False


def main(options: Options) -> None:
    """Plans, and writes results and page after each."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for case in PLANS:
        key = "|".join(case)
        if key not in results or options.again:
            results[key] = plan(*case)
            print(row(key, results[key]), flush=True)
        ordered = {"|".join(c): results["|".join(c)] for c in PLANS if "|".join(c) in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
        PAGE.write_text(HEADER + "\n".join(row(k, r) for k, r in ordered.items()) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
