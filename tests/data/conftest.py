"""Fixtures of the data room."""

import numpy as np
import pytest
from PIL import Image

from dit_jax.data.in_memory import InMemoryRecords


@pytest.fixture
def numbered():
    """37 records of 5 classes; each image holds its own number, but for one white edge."""
    images = np.broadcast_to(np.arange(37, dtype=np.uint8)[:, None, None, None], (37, 4, 6, 1))
    images = images.copy()
    images[:, :, 0] = 255
    return InMemoryRecords(images, np.arange(37) % 5)


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of three JPEGs each, all of different colours."""
    for label, name in enumerate(("ants", "bees")):
        (tmp_path / name).mkdir()
        for i in range(3):
            colour = (40 * i, 100 * label, 200)
            Image.new("RGB", (20 + i, 16), colour).save(tmp_path / name / f"{i}.JPG", "JPEG")
    return tmp_path
