"""DiT-MoE-G/2-16E2A (16.5B parameters, 3.1B active) on ImageNet 512 x 512.

command:  python train.py configs/dit_moe_g_imagenet512.py --data.path LATENTS
          --parallel fsdp+ep --parallel.expert 16
          (LATENTS: what `python -m dit_jax cache-latents` wrote, docs/data.md)
hardware: TPU v5p:4x4x4, 64 chips (planned by the compiler, docs/plans.md; not run yet)
result:   published FID-50K (not reproduced here yet): 1.80 with guidance
source:   DiT-MoE, arXiv 2407.11633, and its released code (linear path, velocity, logit-normal
          time; balance loss 0.01); the batch size and the steps are this file's choice
"""

import dataclasses
import pathlib
import runpy

from dit_jax.data import ArrayRecords

smaller = pathlib.Path(__file__).with_name("dit_moe_g_imagenet256.py")
at_256 = runpy.run_path(str(smaller))["experiment"]

experiment = dataclasses.replace(
    at_256,
    data=ArrayRecords("data/imagenet512_latents", classes=1000, record=(64, 64, 8)),
    training=dataclasses.replace(at_256.training, batch_size=256),
    run=dataclasses.replace(at_256.run, dir="runs/dit_moe_g_imagenet512"),
)
