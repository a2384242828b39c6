"""Groups of devices in a compiled text, and the mesh axes that they lie along."""

import itertools
import re

import numpy as np

Groups = list[list[int]]


def read_groups(attributes: str, devices: int) -> Groups | None:
    """Groups of a collective, from any of the notations of XLA; None where it is none of them."""
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return _lists(found[1])
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return _lists(found[1])
    if "replica_groups={}" in attributes:
        return [list(range(devices))]
    pattern = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(pattern, attributes):
        ids = np.arange(devices).reshape(_numbers(found[3]))
        ids = ids.transpose(_numbers(found[4])) if found[4] else ids
        return ids.reshape(int(found[1]), int(found[2])).tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        return _of_mesh(found[1], found[2], devices)
    return None


def axes_of(groups: Groups | None, mesh: dict[str, int]) -> tuple[str, ...]:
    """Mesh axes that groups vary along; ("?",) where they are no product of axes.

    Args:
      groups: devices by their place in the mesh, or pairs of source and target.
      mesh: sizes of the mesh's axes, the slowest first.
    """
    if groups is None:
        return ("?",)
    places = np.array(np.unravel_index(np.array(groups), tuple(mesh.values())))
    varying = (places != places[:, :, :1]).any(axis=(1, 2))
    axes = tuple(name for name, varies in zip(mesh, varying) if varies)
    pairs = len(groups[0]) == 2 and groups[0][0] != groups[0][1]
    whole = int(np.prod([mesh[name] for name in axes])) == len(groups[0])
    return axes if whole or pairs else ("?",)


def _of_mesh(sizes: str, names: str, devices: int) -> Groups | None:
    shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    wanted = re.findall(r"'([^']+)'", names)
    plain = re.sub(r"'[^']+'|[\s,]", "", names) == ""
    if not plain or "device_ids" in sizes or int(np.prod([*shape.values()])) != devices:
        return None
    ids = np.arange(devices).reshape([*shape.values()])
    last = [list(shape).index(name) for name in wanted]
    first = [axis for axis in range(len(shape)) if axis not in last]
    width = int(np.prod([shape[name] for name in wanted]))
    return ids.transpose(first + last).reshape(-1, width).tolist()


def _lists(text: str) -> Groups:
    return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in itertools.chain(text.split(","))]
