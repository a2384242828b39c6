"""DiT-DH-XL in the latents of RAE's DINOv2-B, ImageNet 512 x 512.

command:  python train.py configs/dit_dh_xl_imagenet512.py --data.path IMAGES
          (IMAGES: a folder with a subfolder of image files a class; weights first: docs/rae.md)
hardware: TPU v5p-128 (a suggestion: not run yet)
result:   published FID-50K by 49 Euler steps (not reproduced here yet):
          1.13 with autoguidance at 1.5
source:   RAE, arXiv 2510.11690, and its released code, but for the epochs, which
          are this file's choice
"""

import dataclasses
import pathlib
import runpy

from dit_jax.data import ImageFolder
from dit_jax.diffusion import Flow, TruncatedLogitNormal, dimension_shift

smaller = runpy.run_path(str(pathlib.Path(__file__).with_name("dit_dh_xl_imagenet256.py")))
at_256 = smaller["experiment"]

experiment = dataclasses.replace(
    at_256,
    process=Flow(time=TruncatedLogitNormal(), shift=dimension_shift((32, 32, 768))),
    data=ImageFolder("data/imagenet", size=512, flip=True),
    latents=dataclasses.replace(
        at_256.latents,
        decoder_weights="weights/rae-dinov2-base-decoder-512",
        statistics="weights/rae-dinov2-base-statistics-512",
    ),
    training=dataclasses.replace(at_256.training, steps=400 * smaller["EPOCH"]),
    run=dataclasses.replace(at_256.run, dir="runs/dit_dh_xl_imagenet512"),
)
