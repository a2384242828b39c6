"""A linear DiT from the digits' dense one, as LiT is made: its weights, then its outputs.

command:  python train.py configs/digits_lit.py    (after: make train)
hardware: 2 CPU cores, a few minutes
result:   all of 500 samples read as the digit asked for; Frechet distance 4.58 in a small
          classifier's features (the teacher: 4.65; docs/results.md)
source:   LiT (arXiv 2501.12976): all weights but attention's are inherited, few heads, 25 % of the
          teacher's steps; weights of the distillation are this library's
"""

from dit_jax.attention import LiT
from dit_jax.data import Digits
from dit_jax.diffusion import ClassifierFree, Flow, Heun, Sampling
from dit_jax.evaluation.judge import SmallClassifier
from dit_jax.evaluation.options import Evaluation
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.models import DiT
from dit_jax.training.distillation import Distillation
from dit_jax.training.optimizer import AdamW, Cosine

experiment = Experiment(
    model=DiT(
        patch=2, hidden=96, depth=4, heads=2, num_classes=10, learn_sigma=False, attention=LiT()
    ),
    process=Flow(),
    data=Digits(),
    sampling=Sampling(Heun(steps=20), ClassifierFree(scale=2.0)),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=50), clip_norm=1.0),
    training=Training(steps=400, batch_size=64, ema=(0.98,)),
    evaluation=Evaluation(samples=500, batch_size=250, judge=SmallClassifier(), held_out=250),
    run=RunFolder("runs/digits_lit", log_every=50, sample_every=200, save_every=200),
    init_from="runs/digits",
    distillation=Distillation(teacher="runs/digits"),
)
