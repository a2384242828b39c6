"""Vision encoders of transformers with random weights, and the same ones here."""

import jax
import numpy as np

from dit_jax.interop.convert import convert_from_torch
from dit_jax.interop.store import Converted
from dit_jax.weights import load_weights
from tests.torch_twins.to_jax import to_nchw, to_nhwc

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
PERCEPTRON = {"intermediate_size": 48}


def dinov2(**changes):
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**SIZES | changes))


def dinov2_with_registers(**changes):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZES | {"num_register_tokens": 3} | changes)
    )


def siglip(**changes):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**SIZES | PERCEPTRON | changes))


def mae(**changes):
    from transformers import ViTMAEConfig, ViTMAEModel

    return ViTMAEModel(ViTMAEConfig(**SIZES | PERCEPTRON | {"mask_ratio": 0.0} | changes))


def dinov2_classifier():
    from transformers import Dinov2Config, Dinov2ForImageClassification

    return Dinov2ForImageClassification(Dinov2Config(**SIZES, num_labels=5))


def siglip_with_text():
    from transformers import SiglipConfig, SiglipModel

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 7}
    return SiglipModel(
        SiglipConfig(vision_config=SIZES | PERCEPTRON, text_config=text | PERCEPTRON)
    )


def mae_with_decoder():
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
    }
    return ViTMAEForPreTraining(ViTMAEConfig(**SIZES | PERCEPTRON | decoder, mask_ratio=0.0))


ENCODERS = {
    "dinov2": dinov2,
    "dinov2 with registers": dinov2_with_registers,
    "dinov2 with registers and SwiGLU": lambda: dinov2_with_registers(
        hidden_size=24, use_swiglu_ffn=True
    ),
    "siglip": siglip,
    "vit-mae": mae,
}
IN_LARGER_MODELS = {
    "dinov2 in a classifier": dinov2_classifier,
    "siglip with its text tower": siglip_with_text,
    "vit-mae with its decoder": mae_with_decoder,
}


def randomised(twin, seed=0):
    """Gives every parameter random values, none of them zero."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            noise = torch.randn_like(parameter)
            if any(word in name for word in ("token", "position", "pos_embed", "probe", "logit")):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim == 1:
                # Norms' scales and LayerScale around 1, biases around 0.
                is_scale = "norm" in name and name.endswith("weight") or "lambda" in name
                parameter.copy_(0.2 * noise + is_scale)
            else:
                # Attention stays far from uniform.
                gain = 2 if any(word in name for word in ("q_proj", "k_proj")) else 1
                parameter.copy_(gain * noise * parameter[0].numel() ** -0.5)
    return twin.eval()


def converted(source, folder):
    """Converts a file or a folder: the module and its parameters."""
    convert_from_torch(str(source), str(folder))
    return loaded(folder)


def loaded(folder):
    """A converted encoder and its parameters."""
    found = Converted(str(folder), ema=None).found
    return found.module, load_weights(str(folder), found.abstract())


def make_pair(name, folder):
    """Returns the encoder of transformers, and here the module and its parameters."""
    twin = randomised((ENCODERS | IN_LARGER_MODELS)[name]())
    twin.save_pretrained(folder / "theirs")
    return encoder_of(twin), *converted(folder / "theirs", folder / "ours")


def encoder_of(twin):
    """The encoder in a larger model."""
    for part in ("dinov2", "vision_model", "vit"):
        twin = getattr(twin, part, twin)
    return twin


def images(shape=(2, 12, 20, 3), seed=0):
    """Normal noise; not square, and not what position embeddings are for."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run_torch(twin, x):
    """All tokens [B, prefix + N, D] of images [B, C, H, W]."""
    import torch

    kind = twin.config.model_type
    options = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    if kind == "vit_mae":
        patches = x.shape[2] * x.shape[3] // twin.config.patch_size**2
        options["noise"] = torch.arange(patches).expand(len(x), -1)
    return twin(x, **options).last_hidden_state


def errors(twin, module, params, x):
    """Relative errors of the tokens and of the gradient of their weighted sum."""
    import torch

    inside = torch.tensor(to_nchw(x), requires_grad=True)
    theirs = run_torch(twin, inside)[:, module.prefix_tokens :]
    weights = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32)
    (theirs * torch.tensor(weights)).sum().backward()

    @jax.jit
    def run(params, x):
        tokens, vjp = jax.vjp(lambda x: module.apply({"params": params}, x), x)
        return tokens, vjp(jax.numpy.asarray(weights))[0]

    tokens, gradient = run(params, x)
    return error(tokens, theirs.detach().numpy()), error(gradient, to_nhwc(inside.grad))


def error(value, expected):
    """Largest difference over the largest value expected."""
    assert value.shape == expected.shape
    return np.abs(np.asarray(value) - expected).max() / np.abs(expected).max()
