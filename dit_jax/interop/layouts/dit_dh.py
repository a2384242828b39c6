"""RAE's diffusion models, DiT-DH (bytetriper/RAE; Zheng et al., arXiv 2510.11690)."""

from dit_jax.data import Absent
from dit_jax.diffusion import Euler, Flow, Sampling, TruncatedLogitNormal, dimension_shift
from dit_jax.experiment import Experiment, RunFolder, Training
from dit_jax.interop.layout import Found, Layout, Shapes, count_layers
from dit_jax.interop.layouts.dit import sample_shape
from dit_jax.interop.layouts.lightning_dit import COMPUTED, block_entries, rope_entries
from dit_jax.interop.layouts.sit import is_flow
from dit_jax.interop.rules import Fixed, linear, patch_embed, tensor
from dit_jax.latents import RAE, Cached
from dit_jax.latents.rae.encoders import Dinov2
from dit_jax.layers.patch import patch_grid
from dit_jax.layers.position import sincos_2d
from dit_jax.layers.rope import AxialRope
from dit_jax.models import DiTDH
from dit_jax.models.inputs import example_inputs


class DiTDHLayout(Layout):
    """Blocks numbered through body and head; the head's are those of another width.

    A body as wide as its head cannot be told from it: the last two blocks are the head's then, as
    in all that were published.
    """

    name = "dit-dh"
    licence = "MIT"

    def matches(self, shapes: Shapes) -> bool:
        names = {"s_embedder.proj.weight", "t_embedder.W", "dec_feat_rope.freqs_cos"}
        return names <= shapes.keys()

    def describe(self, shapes, config):
        del config
        hidden, wide = (shapes[f"{name}_embedder.proj.weight"][0] for name in "sx")
        depth = count_layers(shapes, "blocks")
        in_head = [shapes[f"blocks.{i}.norm1.weight"] == (wide,) for i in range(depth)]
        wide_depth = 2 if wide == hidden else sum(in_head)
        model = DiTDH(
            patch=shapes["x_embedder.proj.weight"][-1],
            hidden=hidden,
            depth=depth - wide_depth,
            heads=hidden // shapes["enc_feat_rope.freqs_cos"][1],
            wide_hidden=wide,
            wide_depth=wide_depth,
            wide_heads=wide // shapes["dec_feat_rope.freqs_cos"][1],
            num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
        )
        shape = sample_shape(shapes)
        # The published figures at 256 px without guidance.
        process = Flow(time=TruncatedLogitNormal(), shift=max(1.0, dimension_shift(shape)))
        experiment = Experiment(
            model=model,
            process=process,
            sampling=Sampling(Euler(steps=49, stop=0.001)),
            latents=Cached(RAE(Dinov2(hidden=shape[-1], registers=4, affine=False))),
            data=Absent(shape, model.num_classes),
            training=Training(ema=()),
            run=RunFolder(""),
        )
        return Found(model, example_inputs(shape), experiment)

    def exports(self, found):
        model = found.module
        known = isinstance(model, DiTDH) and model.num_classes > 0
        return known and is_flow(found, data_time=0)

    def entries(self, found):
        model = found.module
        grid = patch_grid(found.inputs[1].shape, model.patch)
        angles = [
            AxialRope().angles(grid, width // heads)
            for width, heads in (
                (model.hidden, model.heads),
                (model.wide_hidden, model.wide_heads),
            )
        ]
        condition = linear("s_projector", "condition")
        return [
            *patch_embed("s_embedder.proj", "encoder_embed", model.patch),
            *patch_embed("x_embedder.proj", "decoder_embed", model.patch),
            *(condition if model.wide_hidden != model.hidden else []),
            tensor("t_embedder.W", "time_embed/features/frequencies"),
            *linear("t_embedder.mlp.0", "time_embed/fc1"),
            *linear("t_embedder.mlp.2", "time_embed/fc2"),
            tensor("y_embedder.embedding_table.weight", "label_embed/table/embedding"),
            *block_entries("encoder/layers", model.heads),
            *block_entries("decoder/layers", model.wide_heads, first=model.depth),
            tensor("final_layer.norm_final.weight", "final/norm/scale"),
            *linear("final_layer.linear", "final/linear"),
            *linear("final_layer.adaLN_modulation.1", "final/adaln/linear"),
            Fixed("pos_embed", sincos_2d(grid, model.hidden)[None], COMPUTED),
            *rope_entries("enc_feat_rope", angles[0]),
            *rope_entries("dec_feat_rope", angles[1]),
        ]
