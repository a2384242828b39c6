"""Prints the libtpu that the installed JAX asks for: another one's output may not be readable."""

import importlib.metadata

found = [name for name in importlib.metadata.requires("jax") or [] if name.startswith("libtpu")]
print(found[0].partition(";")[0].strip())
