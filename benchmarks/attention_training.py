"""Does a DiT on 128 x 128 tokens learn with sparse attention what it learns with full attention?

A small DiT in pixel space, patches of 1 x 1, on crops of scikit-image's colour photos (`pip install
scikit-image`), with LLSA's two levels and with full attention: the same data, noise and steps. Runs
are kept: a stopped benchmark goes on where it was.

    python benchmarks/attention_training.py [--steps 60] [--runs DIR]
"""

import argparse
import json
import pathlib
import statistics

import numpy as np
import report

SIDE, CROPS, WINDOW = 128, 64, 20
TRAIN = ("astronaut", "coffee", "motorcycle_left", "rocket")
TEST = ("chelsea", "motorcycle_right")


def main() -> None:
    """Trains with both mechanisms, saves the curves and draws them."""
    parser = report.parser(__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--runs", type=pathlib.Path, default=pathlib.Path("runs/attention_training")
    )
    options = parser.parse_args()
    write_crops(options.runs / "crops")
    results = {}
    for name in ("llsa", "full"):
        results[name] = measure(name, options)
        print(name, json.dumps(results[name]), flush=True)
    report.save("attention_training", __doc__, results, options.out)
    draw(results, options.runs / "loss.png")


def write_crops(folder: pathlib.Path) -> None:
    """Random crops of the photos, one class; test crops are of other photos."""
    import PIL.Image
    import skimage

    random = np.random.default_rng(0)
    for split, names in {"train": TRAIN, "test": TEST}.items():
        (folder / split / "photo").mkdir(parents=True, exist_ok=True)
        for name in names:
            found = next(pathlib.Path(skimage.__file__).parent.glob(f"data/{name}.*"))
            photo = PIL.Image.open(found).convert("RGB")
            photo = photo.resize((photo.width // 2, photo.height // 2), PIL.Image.Resampling.BOX)
            for i in range(CROPS):
                left = int(random.integers(photo.width - SIDE + 1))
                top = int(random.integers(photo.height - SIDE + 1))
                crop = photo.crop((left, top, left + SIDE, top + SIDE))
                crop.save(folder / split / "photo" / f"{name}_{i:03}.png")


def measure(name: str, options: argparse.Namespace) -> dict:
    """Trains with one mechanism: the losses of windows of steps, and the held-out loss."""
    from dit_jax.attention import LLSA, Full
    from dit_jax.data import ImageFolder
    from dit_jax.diffusion import Euler, Flow, Sampling
    from dit_jax.evaluation.held_out import held_out_loss
    from dit_jax.experiment import Experiment, RunFolder, Training
    from dit_jax.layers.rope import AxialRope
    from dit_jax.models import DiT
    from dit_jax.training.loop import train
    from dit_jax.training.optimizer import AdamW, Cosine

    experiment = Experiment(
        model=DiT(
            patch=1,
            hidden=64,
            depth=2,
            heads=1,
            num_classes=0,
            learn_sigma=False,
            attention={"llsa": LLSA(levels=2), "full": Full()}[name],
            rope=AxialRope(),
        ),
        process=Flow(),
        data=ImageFolder(str(options.runs / "crops"), size=SIDE),
        sampling=Sampling(Euler(steps=10)),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=10), clip_norm=1.0),
        training=Training(steps=options.steps, batch_size=1, ema=(0.95,)),
        run=RunFolder(str(options.runs / name), log_every=1, save_every=20),
    )
    run = train(experiment)
    log = (options.runs / name / "log.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    steps = sorted(losses)
    return {
        "losses": [losses[step] for step in steps],
        "windows": [
            statistics.fmean(losses[step] for step in steps[start : start + WINDOW])
            for start in range(0, len(steps), WINDOW)
        ],
        "held_out": held_out_loss(run, count=16, batch_size=1, seed=0),
    }


def draw(results: dict, path: pathlib.Path) -> None:
    """Draws both loss curves, single steps faint and means over ten bold."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
    labels = {"full": "full attention", "llsa": "LLSA, two levels"}
    for (name, label), color in zip(labels.items(), ("#374151", "#2166ac"), strict=True):
        losses = np.array(results[name]["losses"])
        steps, mean = np.arange(1, len(losses) + 1), np.convolve(losses, np.ones(10) / 10, "valid")
        style = "-" if name == "full" else "--"
        axes.plot(steps, losses, style, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps[9:], mean, style, color=color, label=label)
    axes.set(xlabel="step", ylabel="loss", title="128 x 128 tokens, one image a step")
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)
    plt.close(figure)


if __name__ == "__main__":
    main()
