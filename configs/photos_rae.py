"""DiT-DH in the latents of a small representation autoencoder, on scikit-image's photographs.

command:  python train.py configs/photos_rae.py   (statistics and decoder first: docs/rae.md)
hardware: 2 CPU cores; configs/photos_rae_cached.py trains the same without the encoder's passes
result:   see configs/photos_rae_cached.py, which learns the same; this was not run to its end
source:   RAE's second stage (arXiv 2510.11690) in small
"""

from dit_jax.data import Photos
from dit_jax.diffusion import Euler, Flow, Sampling, TruncatedLogitNormal, dimension_shift
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.latents import RAE
from dit_jax.latents.rae import ViTDecoder
from dit_jax.latents.rae.encoders import EfficientNetLite0, Perceptron
from dit_jax.models import DiTDH
from dit_jax.training.optimizer import AdamW, Cosine

experiment = Experiment(
    model=DiTDH(
        hidden=128, depth=4, heads=4, wide_hidden=256, wide_depth=2, wide_heads=4, num_classes=8
    ),
    process=Flow(time=TruncatedLogitNormal(), shift=dimension_shift((8, 8, 112))),
    data=Photos(size=64),
    latents=RAE(
        EfficientNetLite0(),
        encoder_weights="weights/efficientnet-lite0",
        decoder=ViTDecoder(
            patch=8, hidden=192, depth=4, heads=6, ffn=Perceptron(768, initial="torch")
        ),
        decoder_weights="runs/photos_rae_decoder",
        statistics="weights/photos_rae_statistics",
    ),
    sampling=Sampling(Euler(steps=49, stop=0.001)),
    optimizer=AdamW(
        learning_rate=1e-3, b2=0.95, schedule=Cosine(warmup=100, final=0.1), clip_norm=1.0
    ),
    training=Training(steps=2000, batch_size=32, ema=(0.995,)),
    run=RunFolder("runs/photos_rae", log_every=50, sample_every=500, save_every=500),
)
