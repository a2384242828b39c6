"""DiT-MoE-S/2-8E2A on ImageNet 256 x 256.

command:  python train.py configs/dit_moe_s_imagenet256.py --data.path LATENTS
          (LATENTS: what `python -m dit_jax cache-latents` wrote, docs/data.md; on 8 devices add
          --parallel.expert 8 to divide the experts)
hardware: TPU v5e-8 or 8 H100 (a suggestion: not run yet)
result:   none is known here for this recipe of 400K steps
source:   DiT-MoE, arXiv 2407.11633, and its released code (DiT's diffusion; balance loss 0.01)
"""

from dit_jax.data import ArrayRecords
from dit_jax.diffusion import DDPM, ClassifierFree, Gaussian, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import VAE, Cached
from dit_jax.presets import create_model
from dit_jax.training.optimizer import AdamW

experiment = Experiment(
    model=create_model("DiT-MoE-S/2-8E2A", dtype="bfloat16"),
    process=Gaussian(),
    data=ArrayRecords("data/imagenet256_latents", classes=1000, record=(32, 32, 8)),
    latents=Cached(VAE("weights/vae", scale=0.18215)),
    sampling=Sampling(DDPM(steps=250), ClassifierFree(scale=1.5, channels=3)),
    optimizer=AdamW(learning_rate=1e-4),
    training=Training(steps=400_000, batch_size=256, ema=(0.9999,)),
    run=RunFolder("runs/dit_moe_s_imagenet256", save_every=10_000, keep_every=100_000),
)
