"""PyTorch checkpoints in and out: one engine, one key table a family.

The only room that may import torch, and only inside functions.
"""
