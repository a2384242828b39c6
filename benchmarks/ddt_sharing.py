"""What does it cost to run DDT's condition encoder at some steps alone? On digits, Euler's method.

The samples of a small DDT (configs/digits_ddt.py) with the encoder at all of 50 steps, and at
fewer: evenly spaced, or chosen by dynamic programming from the similarity of what the encoder
returns while 8 other samples are drawn. Runs are kept: a stopped benchmark goes on where it was.

    python benchmarks/ddt_sharing.py [--seeds 0 1 2] [--budgets 25 10 5 2] [--runs DIR]
"""

import dataclasses
import pathlib
import runpy
import time

import report

ROOT = pathlib.Path(__file__).parents[1]
# Of the noise; the steps are chosen on samples of another one.
SEED, PROBE_SEED, BATCH = 0, 1, 100


def main() -> None:
    """Trains a model a seed, measures all ways to share, and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", type=int, default=[25, 10, 5, 2])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/ddt_sharing"))
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        for row in measure(trained(options.runs / str(seed), seed), options.budgets):
            results.append({"seed": seed, **row})
            print(results[-1], flush=True)
    report.save("ddt_sharing", __doc__, results, options.out)


def trained(folder: pathlib.Path, seed: int):
    """Trains one model, or opens it."""
    from dit_jax.experiment import RunFolder
    from dit_jax.training.loop import train

    base = runpy.run_path(str(ROOT / "configs" / "digits_ddt.py"))["experiment"]
    experiment = dataclasses.replace(
        base,
        training=dataclasses.replace(base.training, seed=seed),
        run=RunFolder(str(folder), log_every=100, save_every=base.training.steps),
    )
    return train(experiment)


def measure(run, budgets: list[int]) -> list[dict]:
    """Draws the same samples in all ways, in turn, and compares them with those not shared."""
    import numpy as np

    from dit_jax.diffusion import mean_similarity
    from dit_jax.sharing import encoder_similarity

    options = run.experiment.evaluation
    labels = np.arange(options.samples) % run.model.num_classes
    similarity = encoder_similarity(run, np.arange(8), seed=PROBE_SEED)
    evaluations = len(similarity)
    ways = all_ways(similarity, budgets)
    batches = -(-len(labels) // BATCH)
    samples, seconds = {way: [] for way in ways}, {way: [] for way in ways}
    drawing = {way: draw(run, labels, steps, evaluations) for way, steps in ways.items()}
    for number in range(batches):
        # All ways in turn, as the machine may be quick now and slow then.
        for way, batch in drawing.items():
            begun = time.perf_counter()
            samples[way].append(next(batch))
            if number:  # The first one compiles.
                seconds[way].append((time.perf_counter() - begun) / BATCH)
    samples = {way: np.concatenate(parts) for way, parts in samples.items()}
    judge, whole = Judge(run), samples["all", evaluations]
    encode, decode = halves_flops(run)
    return [
        {
            "choice": way[0],
            "passes": way[1],
            "steps": steps,
            "similarity": mean_similarity(similarity, np.isin(np.arange(evaluations), steps)),
            "relative_l2": float(np.linalg.norm(samples[way] - whole) / np.linalg.norm(whole)),
            **judge(samples[way], labels),
            "flops": (len(steps) * encode + evaluations * decode) / (encode + decode) / evaluations,
            "seconds": seconds[way],
        }
        for way, steps in ways.items()
    ]


def draw(run, labels, steps: tuple[int, ...], evaluations: int):
    """Yields samples, a batch at a time."""
    from dit_jax.diffusion import Sharing
    from dit_jax.sampling import sample_batches

    # What users compare with is the program that knows of no sharing.
    sharing = Sharing() if len(steps) == evaluations else Sharing(steps=steps)
    return sample_batches(run, labels, BATCH, seed=SEED, sharing=sharing, decode=False)


def all_ways(similarity, budgets: list[int]) -> dict[tuple[str, int], tuple[int, ...]]:
    """The steps at which the encoder runs, by how they are chosen and how many they are."""
    from dit_jax.diffusion import choose_steps

    evaluations = len(similarity)
    ways = {("all", evaluations): tuple(range(evaluations))}
    for budget in budgets:
        ways["even", budget] = tuple(i * evaluations // budget for i in range(budget))
        ways["chosen", budget] = choose_steps(similarity, budget)
    return ways


class Judge:
    """The small classifier of the run's evaluation, fitted once."""

    def __init__(self, run):
        from dit_jax.evaluation.judge import stack
        from dit_jax.metrics import Gaussian

        data = run.experiment.data.open("train")
        self.fitted = run.experiment.evaluation.judge.fit(data)
        self.reference = Gaussian.of(self.fitted.features(stack(data)[0]))

    def __call__(self, samples, labels) -> dict[str, float]:
        """Frechet distance to the training split, and the share read as asked for."""
        import numpy as np

        from dit_jax.images import to_uint8
        from dit_jax.metrics import Gaussian, frechet_distance

        images = np.asarray(to_uint8(samples))
        found = Gaussian.of(self.fitted.features(images))
        return {
            "frechet_distance": frechet_distance(found, self.reference),
            "label_agreement": float(np.mean(self.fitted.labels(images) == labels)),
        }


def halves_flops(run) -> tuple[int, int]:
    """FLOPs of the encoder and of the decoder for one sample."""
    import functools

    import jax

    from dit_jax.flops import count_flops
    from dit_jax.models.inputs import example_inputs

    _, *inputs = example_inputs(run.shape)
    params = {"params": run.params}
    encode = functools.partial(run.model.apply, method="encode")
    decode = functools.partial(run.model.apply, method="decode")
    s = jax.eval_shape(encode, params, *inputs)
    return count_flops(encode, params, *inputs), count_flops(decode, params, inputs[0], s)


if __name__ == "__main__":
    main()
