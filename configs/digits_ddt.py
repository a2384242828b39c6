"""A small DDT on scikit-learn's digits, whose condition encoder need not run at every step.

command:  python train.py configs/digits_ddt.py
          python -m dit_jax share-steps runs/digits_ddt --budget 5
          python evaluate.py runs/digits_ddt --sharing 0,15,25,34,42
hardware: 2 CPU cores, a few minutes
result:   all of 500 samples read as the digit asked for, Frechet distance 3.0 in a small
          classifier's features, with the encoder at all of 50 steps and at 5 (docs/results.md)
source:   DDT (arXiv 2504.05741), without its alignment to DINOv2
"""

from dit_jax.data import Digits
from dit_jax.diffusion import ClassifierFree, Euler, Flow, LogitNormal, Sampling
from dit_jax.evaluation.judge import SmallClassifier
from dit_jax.evaluation.options import Evaluation
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.models import DDT
from dit_jax.training.optimizer import AdamW, Cosine

experiment = Experiment(
    model=DDT(patch=2, hidden=96, encoder_depth=3, decoder_depth=1, heads=3, num_classes=10),
    process=Flow(time=LogitNormal()),
    data=Digits(),
    sampling=Sampling(Euler(steps=50), ClassifierFree(scale=2.0)),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=50), clip_norm=1.0),
    training=Training(steps=1600, batch_size=64, ema=(0.995,)),
    evaluation=Evaluation(samples=500, batch_size=250, judge=SmallClassifier()),
    run=RunFolder("runs/digits_ddt", log_every=50, sample_every=400, save_every=800),
)
