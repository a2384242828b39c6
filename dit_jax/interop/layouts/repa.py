"""REPA's SiT files (sihyun-yu/REPA; Yu et al., arXiv 2410.06940)."""

from dit_jax.diffusion import ClassifierFree, EulerMaruyama, Flow, Sampling
from dit_jax.interop.layout import Layout, Shapes
from dit_jax.interop.layouts.dit import (
    dit_entries,
    dit_of,
    found_dit,
    is_dit,
    is_plain_dit,
    sample_shape,
)
from dit_jax.interop.layouts.sit import is_flow
from dit_jax.interop.rules import Carried


class REPALayout(Layout):
    """SiT with the projectors of its training loss, on a flow from data (t = 0) to noise."""

    name = "repa"
    licence = "MIT"

    def matches(self, shapes: Shapes) -> bool:
        return is_dit(shapes) and any(key.startswith("projectors.") for key in shapes)

    def describe(self, shapes, config):
        del config
        # The published figures: all channels guided by 1.8, for t up to 0.7.
        guidance = ClassifierFree(scale=1.8, interval=(0.0, 0.7))
        sampling = Sampling(EulerMaruyama(steps=250, diffusion="linear"), guidance)
        return found_dit(dit_of(shapes), sample_shape(shapes), Flow(), sampling)

    def exports(self, found):
        return is_plain_dit(found.module) and is_flow(found, data_time=0)

    def entries(self, found):
        reason = "projector of REPA's loss, which sampling does not use"
        return [*dit_entries(found), Carried(r"projectors\..*", reason)]
