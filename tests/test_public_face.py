import subprocess
import sys

import pytest

import dit_jax

# What takes seconds to import, or is wanted by some users alone.
HEAVY = ("jax", "flax", "orbax", "grain", "matplotlib", "sklearn", "torch", "tensorflow", "tyro")


@pytest.mark.parametrize("name", dit_jax.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(dit_jax, name).__doc__.strip()


def test_names_that_are_not_there_are_named():
    with pytest.raises(AttributeError, match="module 'dit_jax' has no attribute 'trian'"):
        dit_jax.trian  # noqa: B018


def test_an_import_imports_nothing_heavy():
    program = f"import sys, dit_jax; print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
