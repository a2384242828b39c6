"""A small DiT on scikit-learn's handwritten digits: the first thing to run.

command:  make train        (or: python train.py configs/digits.py)
hardware: 2 CPU cores, under 5 minutes
result:   >= 90 % of 500 samples are read as the digit that was asked for (docs/results.md)
source:   DiT (arXiv 2212.09748) trained as a linear flow (SiT, arXiv 2401.08740); the digits are
          E. Alpaydin and C. Kaynak's, as shipped with scikit-learn
"""

from dit_jax.data import Digits
from dit_jax.diffusion import ClassifierFree, Flow, Heun, Sampling
from dit_jax.evaluation.judge import SmallClassifier
from dit_jax.evaluation.options import Evaluation
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.models import DiT
from dit_jax.training.optimizer import AdamW, Cosine

experiment = Experiment(
    model=DiT(patch=2, hidden=96, depth=4, heads=3, num_classes=10, learn_sigma=False),
    process=Flow(),
    data=Digits(),
    sampling=Sampling(Heun(steps=20), ClassifierFree(scale=2.0)),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=50), clip_norm=1.0),
    training=Training(steps=1600, batch_size=64, ema=(0.995,)),
    evaluation=Evaluation(samples=500, batch_size=250, judge=SmallClassifier()),
    run=RunFolder("runs/digits", log_every=50, sample_every=200, save_every=200),
)
