"""The decoder of RAE's DINOv2-B, ImageNet 512 x 512: a ViT-XL.

command:  python train.py configs/rae_decoder_imagenet512.py --data.path IMAGES
          (IMAGES: a folder with a subfolder of image files a class; weights first: docs/rae.md)
hardware: TPU v5p-128 (a suggestion: not run yet)
result:   none is published of this decoder alone
source:   RAE, arXiv 2510.11690, and its released code. There images are cut out of all of a picture
          whose short side is 768, here out of its middle square
"""

from dit_jax.data import ImageFolder
from dit_jax.experiment import RunFolder, Training
from dit_jax.latents import RAE
from dit_jax.latents.rae.encoders import Dino, Dinov2
from dit_jax.training.optimizer import AdamW, Cosine
from dit_jax.training.reconstruction.adversary import Adversary
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from dit_jax.training.reconstruction.perceptual import LPIPS

# 1,281,167 images in batches of 512.
EPOCH = 2502
SCHEDULE = Cosine(warmup=EPOCH, final=0.1)

experiment = DecoderExperiment(
    latents=RAE(Dinov2(registers=4, affine=False), "weights/dinov2-with-registers-base"),
    data=ImageFolder("data/imagenet", size=768),
    crop=512,
    noise=0.8,
    perceptual=LPIPS("weights/lpips"),
    adversary=Adversary(
        Dino(),
        "weights/dino-small-8",
        starts=6 * EPOCH,
        counts=8 * EPOCH,
        optimizer=AdamW(learning_rate=2e-4, b2=0.95, schedule=SCHEDULE),
    ),
    optimizer=AdamW(learning_rate=2e-4, b2=0.95, schedule=SCHEDULE),
    training=Training(steps=16 * EPOCH, batch_size=512, ema=(0.9978,)),
    run=RunFolder("runs/rae_decoder_imagenet512", sample_every=EPOCH, save_every=EPOCH),
    held_out=1000,
)
