"""An experiment small enough to compile in a second."""

from dit_jax.data import ArrayRecords
from dit_jax.diffusion import Euler, Flow, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import VAE, Cached
from dit_jax.models import DiT


def experiment(batch=16, remat="dots"):
    """There are no such records: only their shape is known."""
    return Experiment(
        model=DiT(patch=2, hidden=64, depth=2, heads=2, num_classes=10, remat=remat),
        process=Flow(),
        data=ArrayRecords("nowhere", classes=10, record=(8, 8, 8)),
        latents=Cached(VAE()),
        sampling=Sampling(Euler(steps=2)),
        training=Training(steps=2, batch_size=batch),
        run=RunFolder("nowhere"),
    )
