"""DiT-DH-XL in the latents of RAE's DINOv2-B, ImageNet 256 x 256.

command:  python train.py configs/dit_dh_xl_imagenet256.py --data.path IMAGES
          (IMAGES: a folder with a subfolder of image files a class; weights first: docs/rae.md)
hardware: TPU v5p-64 (a suggestion: not run yet)
result:   published FID-50K by 49 Euler steps (not reproduced here yet):
          2.16 at 80 epochs; 1.51 in the end, 1.13 with autoguidance at 1.42
source:   RAE, arXiv 2510.11690, and its released code, which recommends float32: a TPU computes it
          so with JAX_DEFAULT_MATMUL_PRECISION=highest alone
"""

from dit_jax.data import ImageFolder
from dit_jax.diffusion import Euler, Flow, Sampling, TruncatedLogitNormal, dimension_shift
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import RAE
from dit_jax.latents.rae.encoders import Dinov2
from dit_jax.presets import create_model
from dit_jax.training.optimizer import AdamW, Linear

# 1,281,167 images in batches of 1,024.
EPOCH = 1251

experiment = Experiment(
    model=create_model("DiT-DH-XL"),
    process=Flow(time=TruncatedLogitNormal(), shift=dimension_shift((16, 16, 768))),
    data=ImageFolder("data/imagenet", size=256, flip=True),
    latents=RAE(
        Dinov2(registers=4, affine=False),
        encoder_weights="weights/dinov2-with-registers-base",
        decoder_weights="weights/rae-dinov2-base-decoder",
        statistics="weights/rae-dinov2-base-statistics",
    ),
    sampling=Sampling(Euler(steps=49, stop=0.001)),
    optimizer=AdamW(
        learning_rate=2e-4,
        b2=0.95,
        schedule=Linear(start=40 * EPOCH, stop=800 * EPOCH, final=0.1),
        clip_norm=1.0,
    ),
    training=Training(steps=1400 * EPOCH, batch_size=1024, ema=(0.9995,)),
    run=RunFolder("runs/dit_dh_xl_imagenet256", save_every=10_000, keep_every=100_000),
)
