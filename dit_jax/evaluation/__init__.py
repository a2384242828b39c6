"""Generation at scale, feature spaces and metrics."""
