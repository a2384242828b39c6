"""Meshes and how arrays lie on them."""
