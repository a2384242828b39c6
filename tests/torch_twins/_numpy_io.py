"""Lets torch functions be called with numpy (or JAX) arrays."""

import functools

import numpy as np
import torch


def to_tensor(value):
    """Copies an array with at least one axis to a tensor; returns anything else unchanged."""
    if isinstance(value, torch.Tensor) or np.ndim(value) == 0 or not hasattr(value, "__array__"):
        return value
    return torch.tensor(np.array(value))


def to_numpy(value):
    """Turns the tensors in a tensor, tuple or dict into numpy arrays."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, tuple):
        return tuple(to_numpy(item) for item in value)
    if isinstance(value, dict):
        return {key: to_numpy(item) for key, item in value.items()}
    return value


def numpy_io(function):
    """Decorates a torch function so that arrays in give arrays out.

    Each argument that is a numpy (or JAX) array with at least one axis is copied to a tensor. If
    there was at least one, the tensors in the result are returned as numpy arrays; with tensors
    only, the result stays in torch and keeps its gradient.

    Args:
        function: A function of tensors (and other things) that returns a tensor, or a tuple or a
            dict of tensors.

    Returns:
        The decorated function.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        new_args = [to_tensor(value) for value in args]
        new_kwargs = {key: to_tensor(value) for key, value in kwargs.items()}
        pairs = [*zip(args, new_args, strict=True)]
        pairs += [(kwargs[key], new_kwargs[key]) for key in kwargs]
        result = function(*new_args, **new_kwargs)
        return to_numpy(result) if any(old is not new for old, new in pairs) else result

    return wrapper
