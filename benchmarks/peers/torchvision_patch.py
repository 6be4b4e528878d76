"""torchvision beside a PyTorch for CPUs, from PyPI.

PyPI's torchvision is built for CUDA, so its compiled operators do not load beside PyTorch's CPU wheel
and importing it fails. Image processors use its Python part only: it is enough to declare the operators,
and to decode pictures with Pillow.
"""

from __future__ import annotations

from pathlib import Path

_BEFORE = """\
import torch as _torch

_operators = _torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""
_AFTER = """

def _decode_image(input, mode="RGB", apply_exif_orientation=False):
    from io import BytesIO

    from PIL import Image, ImageOps

    from torchvision.transforms.functional import pil_to_tensor

    image = Image.open(BytesIO(input.numpy().tobytes()))
    if apply_exif_orientation:
        image = ImageOps.exif_transpose(image)
    return pil_to_tensor(image.convert("RGB"))


io.decode_image = _decode_image
"""


def patch(site_packages: Path) -> None:
    """Patch the torchvision that is installed there, if there is one; called once per environment."""
    module = site_packages / "torchvision" / "__init__.py"
    if module.exists():
        module.write_text(_BEFORE + module.read_text(encoding="utf-8") + _AFTER, encoding="utf-8")
