"""Maps the twins' weights and images to this library's; knows layouts, and nothing of torch."""

import numpy as np


def to_nhwc(x):
    """Turns a tensor or array [B, C, H, W] into an array [B, H, W, C]."""
    return np.moveaxis(np.asarray(x), 1, -1)


def to_nchw(x):
    """Turns an array [B, H, W, C] into a contiguous array [B, C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


def dit_params(state_dict, heads):
    """Returns the parameters of `dit_jax.models.DiT` that equal a DiT twin's.

    Args:
        state_dict: The twin's state dict; the fixed position table is left out.
        heads: Number of attention heads.

    Returns:
        Nested dict of arrays, ready for `model.apply({"params": ...})`.
    """
    weights = {key: np.asarray(value).copy() for key, value in state_dict.items()}
    depth = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))

    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def block(i):
        name = f"blocks.{i}"
        qkv, out = dense(f"{name}.attn.qkv"), dense(f"{name}.attn.proj")
        width = qkv["kernel"].shape[0]
        head = (heads, width // heads)
        attention = {
            "qkv": {
                "kernel": qkv["kernel"].reshape(width, 3, *head),
                "bias": qkv["bias"].reshape(3, *head),
            },
            "out": {"kernel": out["kernel"].reshape(*head, width), "bias": out["bias"]},
        }
        return {
            "adaln": {"linear": dense(f"{name}.adaLN_modulation.1")},
            "attention": attention,
            "ffn": {"fc1": dense(f"{name}.mlp.fc1"), "fc2": dense(f"{name}.mlp.fc2")},
        }

    patch = weights["x_embedder.proj.weight"]  # [D, C, row in patch, column in patch]
    return {
        "patch_embed": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch)),
            "bias": weights["x_embedder.proj.bias"],
        },
        "time_embed": {"fc1": dense("t_embedder.mlp.0"), "fc2": dense("t_embedder.mlp.2")},
        "label_embed": {"table": {"embedding": weights["y_embedder.embedding_table.weight"]}},
        "blocks": {"layers": _stack([block(i) for i in range(depth)])},
        "final": {
            "adaln": {"linear": dense("final_layer.adaLN_modulation.1")},
            "linear": dense("final_layer.linear"),
        },
    }


def _stack(trees):
    """Stacks the leaves of equal nested dicts along a new first axis."""
    if isinstance(trees[0], dict):
        return {key: _stack([tree[key] for tree in trees]) for key in trees[0]}
    return np.stack(trees)
