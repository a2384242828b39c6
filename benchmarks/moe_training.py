"""Do experts help at equal cost? Dense DiT, DiT-MoE and ProMoE on Fashion-MNIST.

All have the same width, depth, data order, steps and number of activated parameters in their
perceptrons: DiT's perceptron has 8 D^2; DiT-MoE's token takes two SwiGLU experts of 3 D^2 and a
shared one of 2 D^2; ProMoE's, in every other block, one expert and a shared one of 4 D^2 each, of
eight experts to choose from. Runs are kept: a stopped benchmark goes on where it was.

    python benchmarks/moe_training.py [--steps 600] [--seeds 0 1 2] [--runs DIR]
"""

import dataclasses
import pathlib
import runpy

import report

ROOT = pathlib.Path(__file__).parents[1]
HIDDEN, DEPTH, HEADS, EXPERTS = 128, 4, 2, 8


def main() -> None:
    """Trains all models on all seeds and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/moe_training"))
    options = parser.parse_args()
    base = runpy.run_path(str(ROOT / "configs" / "fashion_mnist.py"))["experiment"]
    results = []
    for seed in options.seeds:
        for name, model in models().items():
            folder = options.runs / f"{name}-{seed}"
            found = measure(base, model, folder, seed, options.steps)
            results.append({"model": name, "seed": seed, **found})
            print(results[-1], flush=True)
    report.save("moe_training", __doc__, results, options.out)


def models() -> dict:
    """The contestants."""
    from dit_jax.layers.block import Alternate
    from dit_jax.layers.mlp import Mlp, SwiGLU
    from dit_jax.models import DiT
    from dit_jax.moe import MlpExperts, MoE, SwiGLUExperts
    from dit_jax.moe.routers import DiTMoERouter, ProMoERouter

    dit_moe = MoE(
        DiTMoERouter(experts=EXPERTS), SwiGLUExperts(ratio=1.0), SwiGLU(ratio=1.0, bias=False)
    )
    promoe = MoE(ProMoERouter(experts=EXPERTS), MlpExperts(ratio=2.0), Mlp(ratio=2.0))
    mixers = {"dense": Mlp(), "dit-moe": dit_moe, "promoe": Alternate((Mlp(), promoe))}
    sizes = {"patch": 4, "hidden": HIDDEN, "depth": DEPTH, "heads": HEADS}
    return {
        name: DiT(**sizes, num_classes=10, learn_sigma=False, ffn=mixer)
        for name, mixer in mixers.items()
    }


def measure(base, model, folder: pathlib.Path, seed: int, steps: int) -> dict:
    """Trains one model and evaluates it."""
    from dit_jax.diffusion import Euler
    from dit_jax.evaluation.evaluate import evaluate
    from dit_jax.experiment import RunFolder
    from dit_jax.sizes import count_active, count_parameters
    from dit_jax.training.loop import train

    experiment = dataclasses.replace(
        base,
        model=model,
        sampling=dataclasses.replace(base.sampling, solver=Euler(steps=25)),
        # A short run: an average as slow as the configuration's would still hold its first steps.
        training=dataclasses.replace(base.training, steps=steps, seed=seed, ema=(0.98,)),
        run=RunFolder(str(folder), log_every=50, save_every=steps),
        evaluation=dataclasses.replace(base.evaluation, samples=1000, held_out=5000),
    )
    found = evaluate(train(experiment), folder / "evaluation", experiment.evaluation)
    shape = experiment.shape
    return {
        "parameters": count_parameters(model, shape),
        "active": count_active(model, shape),
        **found.metrics,
    }


if __name__ == "__main__":
    main()
