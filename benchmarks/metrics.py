"""Are samples measured as fast as by torch-fidelity?

In turns: what Inception sees in images of 256 px, with the same random weights. Then, of the same
features: the Frechet distance from two means and covariances, as
torch-fidelity 0.4 has it (eigenvalues of the covariances' product) and as ADM's evaluator has it
(SciPy's matrix square root); improved precision and recall; the kernel distance. Features are as
wide as Inception's, with deviations over three orders of magnitude. Seconds, and the values found.

    python benchmarks/metrics.py [--dimension 2048] [--images 10000] [--batch 16] [--repeats 3]

Needs torch (CPU) and torch-fidelity (`pip install --no-deps torch-fidelity`).
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from unittest import mock

import numpy as np
import report
import torch

from dit_jax.metrics import Gaussian, frechet_distance, kernel_distance, precision_recall


def main() -> None:
    """Times all measures on both sides and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--images", type=int, default=10000, help="features of each set")
    parser.add_argument("--batch", type=int, default=16, help="images that Inception sees")
    parser.add_argument("--subset", type=int, default=1000, help="features of KID's subsets")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    samples, reference = (
        features(seed, options.images, options.dimension, shift)
        for seed, shift in ((0, 0.1), (1, 0.0))
    )
    sizes = {"images": options.images, "dimension": options.dimension}
    row = in_turns(inception_cases(options.batch), options.repeats)
    results = [{"what": "inception", "images": options.batch, **row}]
    print(results[-1], flush=True)
    for what, cases in {
        "frechet_distance": frechet_cases,
        "precision_recall": precision_recall_cases,
        "kernel_distance": kernel_cases,
    }.items():
        row = in_turns(cases(samples, reference, options), options.repeats)
        results.append({"what": what, **sizes, **row})
        print(results[-1], flush=True)
    report.save("metrics", __doc__, results, options.out)


def features(seed: int, count: int, dimension: int, shift: float) -> np.ndarray:
    """Normal features in a basis that is the same for all seeds, float32 [N, D]."""
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(dimension, dimension)))[0]
    deviations = np.geomspace(3, 3e-3, dimension)
    x = np.random.default_rng(seed).normal(shift, size=(count, dimension)) * deviations
    return (x @ basis).astype(np.float32)


Cases = dict[str, Callable[[], float]]


def inception_cases(count: int) -> Cases:
    """From bytes to all features; the value is the mean of the pooled ones."""
    import jax

    from dit_jax.interop.convert import convert_to_torch
    from dit_jax.metrics.features import Inception
    from dit_jax.metrics.inception import InceptionV3
    from dit_jax.storage.weights import save_weights

    fidelity("fid")
    extractors = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    shape = (299, 299, 3)
    with tempfile.TemporaryDirectory() as folder:
        one = np.zeros((1, *shape), np.float32)
        params = jax.jit(InceptionV3().init)(jax.random.key(0), one)["params"]
        save_weights(f"{folder}/ours", InceptionV3(), shape, params)
        convert_to_torch(f"{folder}/ours", f"{folder}/theirs.pt")
        # The bias of the classifier, which no measure looks at.
        tensors = torch.load(f"{folder}/theirs.pt") | {"fc.bias": torch.zeros(1008)}
        torch.save(tensors, f"{folder}/theirs.pt")
        names = ["2048", "logits_unbiased"]
        theirs = extractors.FeatureExtractorInceptionV3("it", names, f"{folder}/theirs.pt")
    images = np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), np.uint8)
    ours, tensor = jax.jit(Inception()), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    @torch.inference_mode()
    def other() -> float:
        return theirs(tensor)[0].mean()

    def mine() -> float:
        return np.asarray(ours(params, images)["pool"]).mean()

    return {"ours": mine, "torch-fidelity": other}


def frechet_cases(samples: np.ndarray, reference: np.ndarray, _: argparse.Namespace) -> Cases:
    """From statistics to FID."""
    a, b = Gaussian.of(samples), Gaussian.of(reference)
    one, other = ({"mu": g.mean, "sigma": g.covariance} for g in (a, b))
    theirs = fidelity("fid")
    return {
        "ours": lambda: frechet_distance(a, b),
        "torch-fidelity": lambda: theirs.fid_statistics_to_metric(one, other, False)[
            theirs.KEY_METRIC_FID
        ],
        "matrix square root": lambda: by_square_root(a, b),
    }


def by_square_root(a: Gaussian, b: Gaussian) -> float:
    """The Frechet distance as most evaluators compute it."""
    import scipy.linalg

    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    return np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)


def precision_recall_cases(
    samples: np.ndarray, reference: np.ndarray, _: argparse.Namespace
) -> Cases:
    """From features to precision."""
    theirs = fidelity("prc")
    tensors = torch.from_numpy(samples), torch.from_numpy(reference)
    return {
        "ours": lambda: precision_recall(samples, reference)[0],
        "torch-fidelity": lambda: theirs.prc_features_to_metric(*tensors, verbose=False)[
            theirs.KEY_METRIC_PRECISION
        ],
    }


def kernel_cases(samples: np.ndarray, reference: np.ndarray, options: argparse.Namespace) -> Cases:
    """From features to KID, of ten subsets."""
    theirs = fidelity("kid")
    tensors = torch.from_numpy(samples), torch.from_numpy(reference)
    settings = {"kid_subsets": 10, "kid_subset_size": options.subset, "verbose": False}
    return {
        "ours": lambda: kernel_distance(samples, reference, 10, options.subset)[0],
        "torch-fidelity": lambda: theirs.kid_features_to_metric(*tensors, **settings)[
            theirs.KEY_METRIC_KID_MEAN
        ],
    }


def in_turns(cases: Cases, repeats: int) -> dict:
    """Seconds of each way, with the others in between, as a busy machine disturbs all alike."""
    seconds, values = {name: [] for name in cases}, {}
    cases["ours"]()  # Compiles.
    for _ in range(repeats):
        for name, run in cases.items():
            begun = time.perf_counter()
            values[name] = float(run())
            seconds[name].append(time.perf_counter() - begun)
    return {
        name: {
            "value": values[name],
            "seconds": round(statistics.median(seconds[name]), 3),
            "lowest": round(min(seconds[name]), 3),
            "highest": round(max(seconds[name]), 3),
        }
        for name in cases
    }


def fidelity(name: str) -> types.ModuleType:
    """torch-fidelity's module `metric_NAME`, which imports torchvision and does not need it."""
    if "torchvision" not in sys.modules and not importlib.util.find_spec("torchvision"):
        modules = ("", ".datasets", ".transforms", ".transforms.functional")
        sys.modules.update({f"torchvision{module}": mock.MagicMock() for module in modules})
    return importlib.import_module(f"torch_fidelity.metric_{name}")


if __name__ == "__main__":
    main()
