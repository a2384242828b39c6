"""DiT-S/2 on ImageNet 256 x 256.

command:  python train.py configs/dit_s_imagenet256.py --data.path LATENTS
          (LATENTS: what `python -m dit_jax cache-latents` wrote, docs/data.md)
hardware: one TPU v5e-8 or one H100 (a suggestion: not run yet)
result:   published FID-50K by 250 DDPM steps (not reproduced here yet):
          68.4 at 400K steps without guidance (DiT, table 4)
source:   DiT, arXiv 2212.09748, and its released code (constant 1e-4, no warm-up, no weight decay)
"""

from dit_jax.data import ArrayRecords
from dit_jax.diffusion import DDPM, ClassifierFree, Gaussian, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import VAE, Cached
from dit_jax.presets import create_model
from dit_jax.training.optimizer import AdamW

experiment = Experiment(
    model=create_model("DiT-S/2", dtype="bfloat16"),
    process=Gaussian(),
    data=ArrayRecords("data/imagenet256_latents", classes=1000, record=(32, 32, 8), flip=True),
    latents=Cached(VAE("weights/vae", scale=0.18215)),
    sampling=Sampling(DDPM(steps=250), ClassifierFree(scale=1.5, channels=3)),
    optimizer=AdamW(learning_rate=1e-4),
    training=Training(steps=400_000, batch_size=256, ema=(0.9999,)),
    run=RunFolder("runs/dit_s_imagenet256", save_every=10_000, keep_every=100_000),
)
