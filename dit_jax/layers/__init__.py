"""Parts that the backbones share."""
