"""SiT's own files (willisma/SiT; Ma et al., arXiv 2401.08740)."""

from dit_jax.diffusion import ClassifierFree, EulerMaruyama, Flow, Sampling
from dit_jax.interop.layout import Found
from dit_jax.interop.layouts.dit import DiTLayout, dit_of, found_dit, is_plain_dit, sample_shape


class SiTLayout(DiTLayout):
    """DiT's keys, on a flow whose time runs from noise to data.

    A file does not say which of the two it is: `--layout` or `--model` does.
    """

    name = "sit"
    licence = "MIT"

    def describe(self, shapes, config):
        del config
        sampling = Sampling(EulerMaruyama(steps=250), ClassifierFree(scale=1.5, channels=3))
        return found_dit(dit_of(shapes), sample_shape(shapes), Flow(data_time=1), sampling)

    def exports(self, found):
        return is_plain_dit(found.module) and is_flow(found, data_time=1)


def is_flow(found: Found, data_time: int, time_scale: float = 1.0) -> bool:
    """Whether a model is a velocity flow on the clock that has data at `data_time`."""
    process = found.experiment.process
    flow = isinstance(process, Flow) and process.prediction == "velocity"
    return flow and (process.data_time, process.time_scale) == (data_time, time_scale)
