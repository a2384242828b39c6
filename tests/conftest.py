"""Tests run on a CPU with 8 virtual devices, and keep compiled programs between runs."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = {
    "xla_force_host_platform_device_count": "8",
    # Otherwise devices that share a few cores may wait for each other in different collectives.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
}
_given = os.environ.get("XLA_FLAGS", "")
_added = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in _given]
os.environ["XLA_FLAGS"] = " ".join([_given, *_added]).strip()
_cache = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
