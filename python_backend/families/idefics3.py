"""Idefics3 and SmolVLM: a large picture is cut into rows and columns of frames and seen once as a whole.

Dimension letters: T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from python_backend.errors import BundleError
from python_backend.families.base import Detail, Features, ModelFamily, PreparedImage
from python_backend.spec import TensorSpec

# Source: `Idefics3Processor` and `SmolVLMProcessor` in transformers 5.23.
_FAKE_TOKEN, _GLOBAL_TAG = "<fake_token_around_image>", "<global-img>"


class Idefics3(ModelFamily):
    """Serving side of `Idefics3ForConditionalGeneration`."""

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        super().__init__(config, processor_dir)
        vision = config["vision_config"]
        self._frame, self._channels = vision["image_size"], vision["num_channels"]
        side = self._frame // vision["patch_size"] // config["scale_factor"]
        self._num_frame_tokens = side**2

    def load_processors(self) -> None:
        super().load_processors()
        frame = self._processor.max_image_size["longest_edge"]
        if frame != self._frame:
            raise BundleError(
                f"the image processor makes frames of {frame} pixels, the vision tower takes {self._frame}"
            )

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.idefics3 import image_processing_pil_idefics3

        processor = image_processing_pil_idefics3.Idefics3ImageProcessorPil
        return processor.from_pretrained(self.processor_dir)

    @property
    def encoder_tensors(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("pixel_values", "float32", ("T", self._channels, self._frame, self._frame)),
            TensorSpec("frame_grid", "int64", ("num_images", 2)),
        )

    def prepare_image(self, image: Image.Image, detail: Detail, num_images: int) -> PreparedImage:
        options = {"do_image_splitting": False} if detail == "low" else {}
        batch = self._processor(images=[[image]], return_row_col_info=True, **options)
        pixels = np.asarray(batch["pixel_values"][0], np.float32)
        grid = np.array([[batch["rows"][0][0], batch["cols"][0][0]]])
        features = {"pixel_values": pixels, "frame_grid": grid}
        return PreparedImage(features, len(pixels) * self._num_frame_tokens)

    def image_text(self, image: PreparedImage) -> str:
        frame = self.template.image_token * self._num_frame_tokens
        whole = f"{_FAKE_TOKEN}{_GLOBAL_TAG}{frame}{_FAKE_TOKEN}"
        rows, columns = image.features["frame_grid"][0]
        if rows == 0:
            return whole
        lines = (
            "".join(f"{_FAKE_TOKEN}<row_{r + 1}_col_{c + 1}>{frame}" for c in range(columns))
            for r in range(rows)
        )
        return "".join(f"{line}\n" for line in lines) + f"\n{whole}"

    def split_images(self, features: Features) -> list[Features]:
        grids = features["frame_grid"]
        counts = np.where(grids[:, 0] == 0, 1, grids.prod(axis=1) + 1)
        frames = np.split(features["pixel_values"], np.cumsum(counts)[:-1] if len(counts) else [])
        return [
            {"pixel_values": pixels, "frame_grid": grids[i : i + 1]}
            for i, pixels in enumerate(frames[: len(grids)])
        ]

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        return {"pixel_values": np.concatenate([image["pixel_values"] for image in images])}

    def split_embeds(self, embeds: np.ndarray, images: Sequence[Features]) -> list[np.ndarray]:
        counts = [len(image["pixel_values"]) * self._num_frame_tokens for image in images]
        return np.split(embeds, np.cumsum(counts)[:-1])


class SmolVLM(Idefics3):
    """Serving side of `SmolVLMForConditionalGeneration`."""

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.smolvlm import image_processing_pil_smolvlm

        processor = image_processing_pil_smolvlm.SmolVLMImageProcessorPil
        return processor.from_pretrained(self.processor_dir)
