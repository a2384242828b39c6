"""A class-conditional DiT on Fashion-MNIST: the small set to judge by.

command:  python train.py configs/fashion_mnist.py    (after: apt-get install dataset-fashion-mnist)
hardware: 2 CPU cores, about 10 minutes
result:   86 % of 2,000 samples read as the class asked for, by a classifier that reads 89 % of real
          test images right; Frechet distance 10.7 in its features (real test images: 0.04)
source:   DiT (arXiv 2212.09748) trained as a linear flow (SiT, arXiv 2401.08740); Fashion-MNIST is
          by Xiao, Rasul and Vollgraf (arXiv 1708.07747)
"""

from dit_jax.data import Idx
from dit_jax.diffusion import ClassifierFree, Flow, Heun, LogitNormal, Sampling
from dit_jax.evaluation.judge import SmallClassifier
from dit_jax.evaluation.options import Evaluation
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.models import DiT
from dit_jax.training.optimizer import AdamW, Cosine

experiment = Experiment(
    model=DiT(patch=4, hidden=192, depth=4, heads=3, num_classes=10, learn_sigma=False),
    process=Flow(time=LogitNormal()),
    data=Idx("/usr/share/datasets/fashion-mnist"),
    sampling=Sampling(Heun(steps=25), ClassifierFree(scale=2.0)),
    optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=100), clip_norm=1.0),
    training=Training(steps=1500, batch_size=64, ema=(0.995,)),
    evaluation=Evaluation(samples=2000, batch_size=250, judge=SmallClassifier(epochs=8)),
    run=RunFolder("runs/fashion_mnist", log_every=50, sample_every=500, save_every=500),
)
