"""DiT-XL/2 on a folder of images, which are encoded as training goes or, better, once before.

command:  python -m dit_jax cache-latents configs/dit_xl_images.py LATENTS --data.path IMAGES
          (IMAGES: a folder with a subfolder for each class; weights/vae: docs/data.md), and then
          python train.py configs/dit_xl_imagenet256.py --data.path LATENTS
          or, to encode each image each time it is seen:
          python train.py configs/dit_xl_images.py --data.path IMAGES
hardware: one accelerator writes the cache; to train, as configs/dit_xl_imagenet256.py
result:   the same as of configs/dit_xl_imagenet256.py
source:   DiT, arXiv 2212.09748, and its released code, which encodes as training goes
"""

from dit_jax.data import ImageFolder
from dit_jax.diffusion import DDPM, ClassifierFree, Gaussian, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import VAE
from dit_jax.presets import create_model
from dit_jax.training.optimizer import AdamW

experiment = Experiment(
    model=create_model("DiT-XL/2", dtype="bfloat16"),
    process=Gaussian(),
    data=ImageFolder("data/imagenet", size=256, flip=True),
    latents=VAE("weights/vae", scale=0.18215),
    sampling=Sampling(DDPM(steps=250), ClassifierFree(scale=1.5, channels=3)),
    optimizer=AdamW(learning_rate=1e-4),
    training=Training(steps=7_000_000, batch_size=256, ema=(0.9999,)),
    run=RunFolder("runs/dit_xl_images", save_every=10_000, keep_every=100_000),
)
