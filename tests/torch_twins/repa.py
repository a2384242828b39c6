"""Twin of the network of REPA (representation alignment).

Source: REPA, arXiv 2410.06940. Written from the project's extract of the authors' conventions. The
names in the state dict are those of the released checkpoints.

REPA's clock is not SiT's: t = 0 is data, t = 1 is noise, x_t = (1 - t) data + t noise, and the
output is the velocity noise - data.
"""

from torch import nn

from .dit import DiT


def projector(hidden_size, projector_size, feature_size):
    """Three-layer perceptron from tokens to an encoder's features."""
    return nn.Sequential(
        nn.Linear(hidden_size, projector_size),
        nn.SiLU(),
        nn.Linear(projector_size, projector_size),
        nn.SiLU(),
        nn.Linear(projector_size, feature_size),
    )


class SiT(DiT):
    """SiT without variance channels, with a projector for each encoder to align with.

    Source: arXiv 2410.06940. Random weights come from `dit.randomise_`.

    Args:
        input_size: Side of the (latent) image, or its (height, width).
        patch_size: Side of a patch.
        in_channels: Channels of the image.
        hidden_size: Features of a token.
        depth: Number of blocks.
        num_heads: Number of heads.
        encoder_depth: Number of blocks before the tokens that are projected (8 for L and XL).
        mlp_ratio: Width of the perceptrons over the hidden size.
        num_classes: Number of classes; the label with this value is the null label.
        projector_size: Features of the projectors' inner layers.
        feature_sizes: Features of each encoder.
    """

    def __init__(
        self,
        input_size,
        patch_size,
        in_channels,
        hidden_size,
        depth,
        num_heads,
        encoder_depth=8,
        mlp_ratio=4.0,
        num_classes=1000,
        projector_size=2048,
        feature_sizes=(768,),
    ):
        super().__init__(
            input_size,
            patch_size,
            in_channels,
            hidden_size,
            depth,
            num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            learn_sigma=False,
        )
        self.encoder_depth = encoder_depth
        self.projectors = nn.ModuleList(
            projector(hidden_size, projector_size, size) for size in feature_sizes
        )
        self.initialise_()

    def forward(self, x, t, y, drop_mask=None):
        """Runs the network.

        Args:
            x: Tensor [B, C, H, W].
            t: Tensor [B] in [0, 1].
            y: Tensor [B], int64 labels.
            drop_mask: Optional bool tensor [B]; labels where it is true become the null label.

        Returns:
            Velocity [B, C, H, W], and a list with a tensor [B, T, features] for each projector.
        """
        tokens = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y, drop_mask)
        features = None
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, c)
            if number == self.encoder_depth:
                features = [project(tokens) for project in self.projectors]
        return self.unpatchify(self.final_layer(tokens, c)), features
