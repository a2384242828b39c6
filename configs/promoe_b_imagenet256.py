"""ProMoE-B on ImageNet 256 x 256.

command:  python train.py configs/promoe_b_imagenet256.py --data.path LATENTS
          (LATENTS: what `python -m dit_jax cache-latents` wrote, docs/data.md)
hardware: TPU v5e-16 or 8 H100 (a suggestion: not run yet)
result:   published FID-50K at 500K steps (not reproduced here yet):
          24.44 without guidance, 6.39 with scale 1.5
source:   ProMoE, arXiv 2510.24711, and its released code (linear path, velocity, logit-normal time)
"""

from dit_jax.data import ArrayRecords
from dit_jax.diffusion import ClassifierFree, Euler, Flow, LogitNormal, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import VAE, Cached
from dit_jax.presets import create_model
from dit_jax.training.optimizer import AdamW

experiment = Experiment(
    model=create_model("ProMoE-B", dtype="bfloat16"),
    process=Flow(time=LogitNormal(), time_scale=1000.0),
    data=ArrayRecords("data/imagenet256_latents", classes=1000, record=(32, 32, 8)),
    latents=Cached(VAE("weights/vae", scale=0.18215)),
    sampling=Sampling(Euler(steps=250), ClassifierFree(scale=1.5)),
    optimizer=AdamW(learning_rate=1e-4, clip_norm=0.5),
    training=Training(steps=500_000, batch_size=256, ema=(0.9999,)),
    run=RunFolder("runs/promoe_b_imagenet256", save_every=10_000, keep_every=100_000),
)
