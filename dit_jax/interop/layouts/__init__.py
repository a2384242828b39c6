"""The families of checkpoints that are known, one a file."""

from dit_jax.errors import InputError
from dit_jax.interop.layout import Found, Layout, Shapes
from dit_jax.interop.layouts.ddt import DDTLayout
from dit_jax.interop.layouts.diffusers_dit import DiffusersDiTLayout
from dit_jax.interop.layouts.diffusers_rae import DiffusersRAELayout
from dit_jax.interop.layouts.diffusers_vae import DiffusersVAELayout
from dit_jax.interop.layouts.dino import DINOLayout
from dit_jax.interop.layouts.dinov2 import Dinov2Layout
from dit_jax.interop.layouts.dit import DiTLayout
from dit_jax.interop.layouts.dit_dh import DiTDHLayout
from dit_jax.interop.layouts.dit_moe import DiTMoELayout
from dit_jax.interop.layouts.efficientnet import EfficientNetLayout
from dit_jax.interop.layouts.inception import InceptionGraphLayout, InceptionLayout
from dit_jax.interop.layouts.lightning_dit import LightningDiTLayout
from dit_jax.interop.layouts.lpips import LPIPSLayout
from dit_jax.interop.layouts.promoe import ProMoELayout
from dit_jax.interop.layouts.rae_decoder import RAEDecoderLayout
from dit_jax.interop.layouts.rae_statistics import RAEStatisticsLayout
from dit_jax.interop.layouts.repa import REPALayout
from dit_jax.interop.layouts.siglip import SigLIPLayout
from dit_jax.interop.layouts.sit import SiTLayout
from dit_jax.interop.layouts.vit_mae import ViTMAELayout

LAYOUTS: tuple[Layout, ...] = (
    DiTLayout(),
    SiTLayout(),
    REPALayout(),
    DiffusersDiTLayout(),
    LightningDiTLayout(),
    DDTLayout(),
    DiTDHLayout(),
    DiTMoELayout(),
    ProMoELayout(),
    DiffusersVAELayout(),
    Dinov2Layout(),
    SigLIPLayout(),
    ViTMAELayout(),
    DINOLayout(),
    LPIPSLayout(),
    EfficientNetLayout(),
    InceptionLayout(),
    InceptionGraphLayout(),
    RAEDecoderLayout(),
    RAEStatisticsLayout(),
    DiffusersRAELayout(),
)


def find_layout(name: str) -> Layout:
    """Returns the layout of that name.

    Raises:
      InputError: there is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise InputError(f"no layout '{name}': choose one of {_names()}")


def choose_layout(shapes: Shapes, wanted: str | None, preset: str | None) -> Layout:
    """Returns the layout that a file's tensors fit.

    Args:
      shapes: the file's tensors.
      wanted: the layout asked for, None for any.
      preset: the layout of the preset asked for, which decides between several that fit.

    Raises:
      InputError: none fits, several do, or not the wanted one.
    """
    fitting = {layout.name: layout for layout in LAYOUTS if layout.matches(shapes)}
    names = " or ".join(fitting)
    if wanted is not None:
        find_layout(wanted)
    if not fitting:
        some = ", ".join(sorted(shapes)[:3])
        raise InputError(f"no known family has keys such as {some}: choose one of {_names()}")
    if wanted is not None and wanted not in fitting:
        raise InputError(f"this is a file of {names}, not of {wanted}")
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if (chosen := wanted or preset) not in fitting:
        raise InputError(f"these keys fit {names}: say which with --layout or --model")
    return fitting[chosen]


def choose_export(found: Found, wanted: str | None) -> Layout:
    """Returns the layout to write a model in: the wanted one, or the first that can.

    Raises:
      InputError: the model or its process cannot be written so.
    """
    able = {layout.name: layout for layout in LAYOUTS if layout.exports(found)}
    if wanted is not None:
        find_layout(wanted)
    if not able:
        raise InputError(f"no layout is known for this {type(found.module).__name__}")
    if wanted is not None and wanted not in able:
        raise InputError(f"this model cannot be written as {wanted}, but as {', '.join(able)}")
    return able[wanted] if wanted else next(iter(able.values()))


def _names() -> str:
    return ", ".join(layout.name for layout in LAYOUTS)
