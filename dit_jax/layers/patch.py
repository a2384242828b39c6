"""Images to tokens and back."""

import einops
import jax

from dit_jax.errors import InputError


def patch_grid(shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """Returns the token grid (rows, columns) of an image [..., H, W, C] cut into square patches.

    Raises:
      InputError: the height or width is not a multiple of `patch`.
    """
    height, width = shape[-3:-1]
    if height % patch or width % patch:
        raise InputError(
            f"an input of {height}x{width} does not divide into patches of {patch}x{patch}: "
            f"choose a patch or an image size that divides"
        )
    return height // patch, width // patch


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Cuts [B, H, W, C] into tokens [B, N, patch * patch * C], row-major over the grid.

    A token is laid out (row in patch, column in patch, channel), channel fastest.
    """
    patch_grid(x.shape, patch)
    return einops.rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Inverse of `patchify`: [B, N, patch * patch * C] to [B, H, W, C]."""
    h, w = grid
    return einops.rearrange(
        tokens, "b (h w) (p q c) -> b (h p) (w q) c", h=h, w=w, p=patch, q=patch
    )
