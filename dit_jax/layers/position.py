"""Fixed sine-cosine position embeddings."""

import numpy as np


def sincos_1d(positions: np.ndarray, dim: int) -> np.ndarray:
    """Embeds positions [N] as [N, dim]: sines then cosines at frequencies 10000^(-j / (dim/2))."""
    frequencies = 10000.0 ** (-np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angles = np.outer(positions.astype(np.float64), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def sincos_2d(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Returns the position table [rows * columns, dim], float32, tokens row-major.

    The first half of the features encodes the column and the second half the row, in units of
    tokens, as in the released DiT code (Peebles & Xie, arXiv 2212.09748); computed in float64.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    halves = [sincos_1d(columns.ravel(), dim // 2), sincos_1d(rows.ravel(), dim // 2)]
    return np.concatenate(halves, axis=-1).astype(np.float32)
