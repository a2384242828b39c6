"""DiT-MoE-G/2-16E2A (16.5B parameters, 3.1B active) on ImageNet 512 x 512.

command:  python train.py configs/dit_moe_g_imagenet512.py --data.path LATENTS
          --parallel fsdp+ep --parallel.expert 16
          (LATENTS: what `python -m dit_jax cache-latents` wrote, docs/data.md)
hardware: TPU v5p:4x4x4, 64 chips (planned by the compiler, docs/plans.md; not run yet)
result:   published FID-50K (not reproduced here yet): 1.80 with guidance
source:   DiT-MoE, arXiv 2407.11633, and its released code (linear path, velocity, logit-normal
          time; balance loss 0.01); the batch size and the steps are this file's choice
"""

from dit_jax.data import ArrayRecords
from dit_jax.diffusion import ClassifierFree, Euler, Flow, LogitNormal, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import VAE, Cached
from dit_jax.presets import create_model
from dit_jax.training.optimizer import AdamW

experiment = Experiment(
    model=create_model("DiT-MoE-G/2-16E2A", dtype="bfloat16", remat="none"),
    process=Flow(time=LogitNormal()),
    data=ArrayRecords("data/imagenet512_latents", classes=1000, record=(64, 64, 8)),
    latents=Cached(VAE("weights/vae", scale=0.18215)),
    sampling=Sampling(Euler(steps=250), ClassifierFree(scale=1.5)),
    optimizer=AdamW(learning_rate=1e-4),
    training=Training(steps=400_000, batch_size=256, ema=(0.9999,)),
    run=RunFolder("runs/dit_moe_g_imagenet512", save_every=10_000, keep_every=100_000),
)
