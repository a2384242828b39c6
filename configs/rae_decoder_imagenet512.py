"""The decoder of RAE's DINOv2-B, ImageNet 512 x 512: a ViT-XL.

command:  python train.py configs/rae_decoder_imagenet512.py --data.path IMAGES
          (IMAGES: a folder with a subfolder of image files a class; weights first: docs/rae.md)
hardware: TPU v5p-128 (a suggestion: not run yet)
result:   none is published of this decoder alone
source:   RAE, arXiv 2510.11690, and its released code. There images are cut out of all of a picture
          whose short side is 768, here out of its middle square
"""

import dataclasses
import pathlib
import runpy

from dit_jax.data import ImageFolder

smaller = pathlib.Path(__file__).with_name("rae_decoder_imagenet256.py")
at_256 = runpy.run_path(str(smaller))["experiment"]

experiment = dataclasses.replace(
    at_256,
    data=ImageFolder("data/imagenet", size=768),
    crop=512,
    run=dataclasses.replace(at_256.run, dir="runs/rae_decoder_imagenet512"),
)
