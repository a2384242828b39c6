"""What do an autoencoder's wide latents ask of a diffusion model (RAE, arXiv 2510.11690)?

In the latents [8, 8, 112] of scikit-image's photographs that configs/photos_rae.py describes:

1. can a model narrower than the latents learn one image by heart, and one as wide as they are?
2. does shifting time towards noise help at equal steps?
3. is a DiT with a wide head (DiT-DH) better than a plain DiT of as many FLOPs?

1 is answered by the loss, 2 and 3 by the Frechet distance of samples to the training latents, in
the latents' mean over positions. Runs are kept: a stopped benchmark goes on where it was.

    python benchmarks/rae_mechanism.py [--seeds 0 1 2] [--steps 800] [--runs DIR]

Needs what the README's section on representation autoencoders makes before it trains: the
encoder's weights, the latents' statistics, and the latents in data/photos_rae.
"""

import dataclasses
import itertools
import json
import pathlib
import runpy

import numpy as np
import report

CACHED = pathlib.Path(__file__).parents[1] / "configs" / "photos_rae_cached.py"
# Of 64 tokens of 112 channels.
SHAPE, CLASSES = (8, 8, 112), 8
BATCH, SAMPLES, EVALUATIONS = 16, 512, 25


def main() -> None:
    """Trains all models with each seed and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/rae_mechanism"))
    options = parser.parse_args()
    base = runpy.run_path(str(CACHED))["experiment"]
    results = []
    for seed in options.seeds:
        for row in itertools.chain(overfit(base, seed, options), compare(base, seed, options)):
            results.append({"seed": seed, **row})
            print(results[-1], flush=True)
    report.save("rae_mechanism", __doc__, results, options.out)


def overfit(base, seed: int, options):
    """Yields the loss of models of several widths that see one image's latents, ever again."""
    from dit_jax.data import ArrayRecords, write_array_records
    from dit_jax.diffusion import Flow

    folder = options.runs / "one_image"
    if not folder.exists():
        write_array_records(str(folder / "train"), BATCH * [base.data.open("train")[0]])
    data = ArrayRecords(str(folder), classes=CLASSES, record=SHAPE)
    models = {
        "DiT 56 wide": plain(56, 6),
        "DiT 112 wide": plain(112, 6),
        "DiT-DH, body 56, head 112 wide": wide_head(56, 4, 112),
    }
    for name, model in models.items():
        experiment = dataclasses.replace(
            base, model=model.clone(label_dropout=0.0), data=data, process=Flow()
        )
        run = trained(experiment, name, seed, options)
        yield {"question": 1, "model": name, "loss": last_loss(run), "floor": floor(model)}


def compare(base, seed: int, options):
    """Yields the Frechet distances of models with other times, and with another head."""
    from dit_jax.diffusion import dimension_shift
    from dit_jax.evaluation.judge import stack
    from dit_jax.flops import forward_flops

    latents, _ = stack(base.data.open("train"))
    yield {
        "question": 2,
        "model": f"{SAMPLES} latents of the data",
        "distance": distance(latents[:: len(latents) // SAMPLES][:SAMPLES], latents),
    }
    shift = dimension_shift(SHAPE)
    head, body = wide_head(64, 3, 128), plain(128, 4)
    for question, name, model, times in (
        (2, "DiT-DH, no shift", head, 1.0),
        (2, f"DiT-DH, shift {shift:.2f}", head, shift),
        (2, "DiT-DH, shift 3", head, 3.0),
        (3, f"DiT, shift {shift:.2f}", body, shift),
    ):
        process = dataclasses.replace(base.process, shift=times)
        experiment = dataclasses.replace(base, model=model, process=process)
        run = trained(experiment, name, seed, options)
        yield {
            "question": question,
            "model": name,
            "distance": distance(samples(run), latents),
            "forward_flops": forward_flops(model, SHAPE),
        }


def plain(hidden: int, depth: int):
    """A DiT with the blocks of a DiT-DH."""
    from dit_jax.layers.mlp import SwiGLU
    from dit_jax.layers.rope import AxialRope
    from dit_jax.models import DiT

    return DiT(
        patch=1,
        hidden=hidden,
        depth=depth,
        heads=2,
        num_classes=CLASSES,
        learn_sigma=False,
        norm="rms",
        ffn=SwiGLU(),
        rope=AxialRope(),
    )


def wide_head(hidden: int, depth: int, wide: int):
    """A DiT-DH whose head has two blocks."""
    from dit_jax.models import DiTDH

    return DiTDH(
        hidden=hidden, depth=depth, heads=2, wide_hidden=wide, wide_heads=2, num_classes=CLASSES
    )


def trained(experiment, name: str, seed: int, options):
    """Trains one model on latents, or opens it."""
    from dit_jax.experiment import RunFolder, Training
    from dit_jax.training.loop import train

    folder = options.runs / str(seed) / name.replace(" ", "_").replace(",", "")
    training = Training(steps=options.steps, batch_size=BATCH, seed=seed, ema=(0.99,))
    run = RunFolder(str(folder), log_every=10, save_every=options.steps)
    return train(dataclasses.replace(experiment, training=training, run=run))


def last_loss(run) -> float:
    """The mean training loss over the last tenth of the steps."""
    training, folder = run.experiment.training, pathlib.Path(run.experiment.run.dir)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    late = [line["loss"] for line in lines if line.get("step", 0) > 0.9 * training.steps]
    return float(np.mean(late))


def floor(model) -> float:
    """What no model can go below whose last tokens span fewer dimensions than the noise has.

    The velocity has the noise in it, of variance 1 in each of a token's channels (the paper's
    theorem 1, with the latents' part left out).
    """
    width = getattr(model, "wide_hidden", model.hidden)
    return max(0.0, 1 - width / SHAPE[-1])


def samples(run) -> np.ndarray:
    """Latents of all classes alike, without guidance."""
    from dit_jax.diffusion import Euler
    from dit_jax.sampling import sample_batches

    labels = np.arange(SAMPLES) % CLASSES
    solver = Euler(EVALUATIONS, stop=0.001)
    return np.concatenate(list(sample_batches(run, labels, 128, solver=solver, decode=False)))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the mean over positions."""
    from dit_jax.metrics import Gaussian, frechet_distance

    return frechet_distance(*(Gaussian.of(x.mean(axis=(1, 2))) for x in (a, b)))


if __name__ == "__main__":
    main()
