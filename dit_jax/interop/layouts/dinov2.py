"""DINOv2 as transformers keeps it (arXiv 2304.07193), with registers too (arXiv 2309.16588)."""

from dit_jax.interop.layouts.vision import Names, VisionLayout
from dit_jax.interop.rules import Rule, linear, tensor
from dit_jax.latents.rae.encoders import Dinov2
from dit_jax.layers.mlp import SwiGLU

_REGISTERS, _MASK = "embeddings.register_tokens", "embeddings.mask_token"
_LAYER, _NORMS, _MLP = "encoder.layer.{i}", ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
_RELEASED, _FIVE = "released", "transformers 5"
# Layers of the giant model's SwiGLU: gate and value, one tensor or two, and the way out.
_GATED = {
    _RELEASED: (("mlp.weights_in",), "mlp.weights_out"),
    _FIVE: (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
}


class Dinov2Layout(VisionLayout):
    """Dinov2Model and Dinov2WithRegistersModel, also in a classifier.

    A SwiGLU is as wide as two thirds of `mlp_ratio` make it: where transformers rounds that up to a
    multiple of 8, which it does not have to for the released giant model, the shapes do not fit.
    """

    name = "dinov2"
    encoder = Dinov2
    names = {
        _RELEASED: Names(
            _LAYER,
            _NORMS,
            tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
            "attention.output.dense",
            _MLP,
        ),
        # State dicts in memory; the files that version saves are like the released ones.
        _FIVE: Names(
            _LAYER,
            _NORMS,
            tuple(f"attention.{name}_proj" for name in "qkv"),
            "attention.o_proj",
            _MLP,
        ),
    }
    prefixes = ("", "dinov2.", "dinov2_with_registers.")
    marks = ("encoder.layer.0.layer_scale1.lambda1",)
    unused = {r"embeddings\.mask_token": "stands for masked patches in DINOv2's own training"}
    around = {r"classifier\..*": "classifies ImageNet"}
    kinds = ("dinov2", "dinov2_with_registers")

    def parts(self, shapes, prefix, spelling, settings):
        registers = {"registers": shapes.get(prefix + _REGISTERS, (1, 0))[1]}
        if not any(_MLP[0] in key for key in shapes):
            return registers | {"ffn": SwiGLU(float(settings.get("mlp_ratio", 4)))}
        return registers | super().parts(shapes, prefix, spelling, settings)

    def keeps(self, ffn):
        return isinstance(ffn, SwiGLU) or super().keeps(ffn)

    def entries(self, found):
        prefix, path = self.prefix(found), "blocks/layers"
        entries = super().entries(found)
        entries += [
            tensor(f"{prefix}{_LAYER}.layer_scale{i}.lambda1", f"{path}/scale{i}") for i in (1, 2)
        ]
        if found.module.registers:
            entries.append(tensor(prefix + _REGISTERS, "registers", "1 r d -> r d"))
        return entries

    def ffn_rules(self, found, layer, path):
        if not isinstance(found.module.ffn, SwiGLU):
            return super().ffn_rules(found, layer, path)
        inner, outer = _GATED[self.spelling(found)]
        weights, biases = (
            tuple(f"{layer}.{key}.{leaf}" for key in inner) for leaf in ("weight", "bias")
        )
        together = "(two h)" if len(inner) == 1 else "two h"
        options = {"sizes": (("two", 2),)}
        return [
            Rule(weights, f"{path}/gate_value/kernel", f"{together} i -> i two h", **options),
            Rule(biases, f"{path}/gate_value/bias", f"{together} -> two h", **options),
            *linear(f"{layer}.{outer}", f"{path}/out"),
        ]

    def make_config(self, module, keys):
        gated = isinstance(module.ffn, SwiGLU)
        ratio = module.ffn.ratio if gated else module.ffn.width / module.hidden
        return {
            **super().make_config(module, keys),
            "model_type": self.kinds[module.registers > 0],
            "architectures": ["Dinov2WithRegistersModel" if module.registers else "Dinov2Model"],
            "mlp_ratio": int(ratio),
            "use_swiglu_ffn": gated,
            **(
                {"num_register_tokens": module.registers}
                if module.registers
                else {"use_mask_token": any(key.endswith(_MASK) for key in keys)}
            ),
        }
