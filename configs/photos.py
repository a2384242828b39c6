"""A small DiT on scikit-image's photographs, in colour: something to fine-tune from.

command:  python train.py configs/photos.py    (after: pip install scikit-image)
hardware: 2 CPU cores
result:   not judged for itself: what it draws was not measured
source:   DiT (arXiv 2212.09748) trained as a linear flow (SiT, arXiv 2401.08740); who took the
          photographs is in scikit-image's documentation
"""

from dit_jax.data import Photos
from dit_jax.diffusion import ClassifierFree, Flow, Heun, Sampling
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.models import DiT
from dit_jax.training.optimizer import AdamW, Cosine

experiment = Experiment(
    model=DiT(patch=4, hidden=192, depth=4, heads=3, num_classes=8, learn_sigma=False),
    process=Flow(),
    data=Photos(size=32, side=48),
    sampling=Sampling(Heun(steps=25), ClassifierFree(scale=2.0)),
    optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=100), clip_norm=1.0),
    training=Training(steps=1_500, batch_size=32, ema=(0.99,)),
    run=RunFolder("runs/photos", log_every=50, sample_every=500, save_every=500),
)
