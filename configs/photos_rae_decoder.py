"""The decoder of a small representation autoencoder, on scikit-image's photographs.

command:  python train.py configs/photos_rae_decoder.py   (weights first: docs/rae.md)
hardware: 15 minutes on one CPU core of 2.5 GHz
result:   test crops come back recognisable, with seams between patches: PSNR 19.9 dB, SSIM 0.50
source:   RAE's first stage (arXiv 2510.11690) in small. Encoder, perceptual distance and
          discriminator all look through EfficientNet-Lite0, whose weights install from a package
          index: a stand-in for DINOv2, LPIPS and DINO
"""

from dit_jax.data import Photos
from dit_jax.experiment import RunFolder, Training
from dit_jax.latents import RAE
from dit_jax.latents.rae import ViTDecoder
from dit_jax.latents.rae.encoders import EfficientNetFeatures, EfficientNetLite0, Perceptron
from dit_jax.training.optimizer import AdamW, Cosine
from dit_jax.training.reconstruction.adversary import Adversary
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from dit_jax.training.reconstruction.perceptual import FeatureDistance

WEIGHTS = "weights/efficientnet-lite0"
# 64 pixels are 8 x 8 patches of 8, for which the encoder sees 128 pixels.
DECODER = ViTDecoder(
    patch=8, hidden=192, depth=4, heads=6, ffn=Perceptron(768, initial="torch"), remat="none"
)

experiment = DecoderExperiment(
    latents=RAE(EfficientNetLite0(), WEIGHTS, DECODER),
    data=Photos(size=64),
    noise=0.4,
    perceptual=FeatureDistance(WEIGHTS, EfficientNetFeatures()),
    perceptual_weight=0.1,
    adversary=Adversary(
        EfficientNetFeatures(),
        WEIGHTS,
        size=None,
        starts=400,
        counts=500,
        weight=0.2,
        optimizer=AdamW(learning_rate=2e-4, b2=0.95),
    ),
    optimizer=AdamW(
        learning_rate=1e-3, b2=0.95, schedule=Cosine(warmup=50, final=0.1), clip_norm=1.0
    ),
    training=Training(steps=800, batch_size=16, ema=(0.99,)),
    run=RunFolder(
        "runs/photos_rae_decoder", log_every=50, sample_every=100, save_every=250, keep=1
    ),
)
