"""Inception-v3's twin with random weights, and the same network here."""

import flax.traverse_util
import jax
import numpy as np
import torch

from dit_jax.interop.engine import make_plan, to_jax
from dit_jax.interop.layouts import find_layout
from dit_jax.metrics.inception import InceptionV3
from tests.interop.parity import relative_error
from tests.torch_twins.batch_normed import randomise_
from tests.torch_twins.inception import InceptionV3 as Twin
from tests.torch_twins.to_jax import to_nchw

SIDE = 299


def make_pair():
    """Returns the twin, and its parameters here, carried over in memory."""
    twin = randomise_(Twin(), seed=0)
    tensors = {key: value.numpy() for key, value in twin.state_dict().items()}
    return twin, carried_over(find_layout("inception"), tensors)


def carried_over(layout, tensors):
    """The parameters that a layout makes of a state dict."""
    shapes = {key: value.shape for key, value in tensors.items()}
    found, params = layout.describe(shapes, {}), {}
    plan = make_plan(layout.entries(found), shapes, found.abstract())
    for _ in to_jax(plan, tensors.get, lambda path, _, value: params.update({path: value})):
        pass
    return flax.traverse_util.unflatten_dict(params, sep="/")


@torch.no_grad()
def errors(twin, params):
    """Relative errors of pool, spatial and logits."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    found = jax.jit(InceptionV3().apply)({"params": params}, images)
    theirs = twin(torch.tensor(to_nchw(images)))
    return [relative_error(a, b) for a, b in zip(found, theirs, strict=True)]
