"""Checkpoints as files: what is in them, and how to write them anew for other devices.

Nothing here reads an array whole, and nothing needs the devices that wrote it or will read it.
"""

from dit_jax.storage.contents import Stored, StoredArray, StoredItem, read_contents
from dit_jax.storage.rewriting import reshard

__all__ = ["Stored", "StoredArray", "StoredItem", "read_contents", "reshard"]
