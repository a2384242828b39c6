"""Results on disk: one dated JSON file a benchmark and machine."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

_FOLDER = pathlib.Path(__file__).parent / "results"
_PACKAGES = ("jax", "flax", "grain", "torch", "diffusers", "scipy", "torch-fidelity")


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser that says what the benchmark asks, and where its result goes."""
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--out", type=pathlib.Path, default=_FOLDER, help="folder of the result")
    return made


def save(
    name: str, question: str, results: Any, out: pathlib.Path, host: str | None = None
) -> None:
    """Writes `OUT/NAME-HOST-DATE.json` and prints its path."""
    host = host or f"{platform.system()}-{platform.machine()}-{os.cpu_count()}cpu".lower()
    date = datetime.date.today().isoformat()
    report = {
        "question": question.partition("\n")[0],
        "date": date,
        "host": host,
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "results": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{host}-{date}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
