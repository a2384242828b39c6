"""How long does a conversion take, and how much memory?

A checkpoint of random weights is read from disk into a folder that dit_jax opens, and back, each by
`python -m dit_jax convert` in a process of its own. Peak memory is the kernel's count for that
process: everything resident, mapped pages of files included.

    python benchmarks/convert.py [--models DiT-XL/2] [--suffix .safetensors] [--dtype float32]
    python benchmarks/convert.py --models DiT-MoE-G/2-16E2A --dtype bfloat16    # 66 GB of disk
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import report


def main() -> None:
    """Times all models and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["DiT-XL/2"], metavar="PRESET")
    parser.add_argument("--suffix", choices=(".pt", ".safetensors"), default=".safetensors")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--scratch", metavar="DIR", help="where the files go")
    options = parser.parse_args()
    results = [measure(name, options) for name in options.models]
    names = "-".join(name.replace("/", "") for name in options.models)
    report.save(f"convert-{names}-{options.dtype}", __doc__, results, options.out)


def measure(name: str, options: argparse.Namespace) -> dict:
    """Writes a checkpoint, and converts it in and out."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        file, run = (pathlib.Path(scratch) / part for part in (f"model{options.suffix}", "run"))
        parameters = write_random(name, file, options)
        result = {"model": name, "parameters": parameters, "dtype": options.dtype}
        result["gigabytes"] = round(file.stat().st_size / 1e9, 2)
        result["from_torch"] = convert("from-torch", str(file), str(run), "--model", name)
        file.unlink()  # Three copies of 16 billion parameters would need a large disk.
        result["to_torch"] = convert("to-torch", str(run), str(file))
        print(json.dumps(result), flush=True)
        return result


def convert(*arguments: str) -> dict:
    """Runs the command; returns its seconds and its peak memory in gigabytes."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "dit_jax", "convert", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"convert {arguments[0]} failed")
    seconds = time.perf_counter() - begin
    return {"seconds": round(seconds, 1), "peak_gigabytes": round(usage.ru_maxrss / 1e6, 2)}


def write_random(name: str, file: pathlib.Path, options: argparse.Namespace) -> int:
    """Writes uniform values in the layout of the authors; returns the number of parameters."""
    import numpy as np

    from dit_jax.diffusion import DDPM, Sampling
    from dit_jax.interop.engine import by_path, to_torch
    from dit_jax.interop.layouts import find_layout
    from dit_jax.interop.layouts.dit import found_dit
    from dit_jax.interop.writing import write_state_dict
    from dit_jax.presets import find_preset

    preset = find_preset(name)
    layout = find_layout(preset.layout)
    found = found_dit(preset.model, preset.shape, preset.process, Sampling(DDPM()))
    targets, rng = by_path(found.abstract()), np.random.default_rng(0)
    dtype = np.dtype(options.dtype)

    def read(path: str, layer: int | None) -> np.ndarray:
        shape = targets[path].shape[0 if layer is None else 1 :]
        return (0.02 * rng.random(shape, np.float32)).astype(dtype)

    dtypes = dict.fromkeys(targets, dtype)
    tensors = list(to_torch(layout.entries(found), found.abstract(), dtypes, read))
    write_state_dict(str(file), tensors, layout, found, {})
    return sum(leaf.size for leaf in targets.values())


if __name__ == "__main__":
    main()
