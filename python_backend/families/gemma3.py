"""Gemma 3: every picture, and every crop of one, becomes the same number of tokens.

Dimension letters: T pictures, crops included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from python_backend.families.base import Detail, Features, ModelFamily, PreparedImage
from python_backend.spec import TensorSpec

# Source: `Gemma3Processor.images_kwargs` in transformers 5.23.
_CROP_DEFAULTS: dict[str, float] = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


class Gemma3(ModelFamily):
    """Serving side of `Gemma3ForConditionalGeneration`."""

    def load_processors(self) -> None:
        super().load_processors()
        _ = self._processor

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.gemma3 import image_processing_pil_gemma3

        processor = image_processing_pil_gemma3.Gemma3ImageProcessorPil
        return processor.from_pretrained(self.processor_dir)

    @cached_property
    def _crop_options(self) -> dict[str, float]:
        """How a picture is cut into crops: as the checkpoint says, else as `Gemma3Processor` does."""
        given = {name: getattr(self._processor, name) for name in _CROP_DEFAULTS}
        return {k: _CROP_DEFAULTS[k] if value is None else value for k, value in given.items()}

    @property
    def image_token_id(self) -> int:
        return int(self.config["image_token_index"])

    @property
    def placeholder_id(self) -> int:
        return int(self.config["boi_token_index"])

    @property
    def _num_tokens(self) -> int:
        """Of one picture or crop."""
        return int(self.config["mm_tokens_per_image"])

    @property
    def encoder_tensors(self) -> tuple[TensorSpec, ...]:
        vision = self.config["vision_config"]
        pixels = ("T", vision["num_channels"], vision["image_size"], vision["image_size"])
        return (
            TensorSpec("pixel_values", "float32", pixels),
            TensorSpec("num_pictures", "int64", ("num_images",)),
        )

    def prepare_image(self, image: Image.Image, detail: Detail, num_images: int) -> PreparedImage:
        # With high detail the picture is also seen in crops; Hugging Face does so when asked to.
        options = {**self._crop_options, "do_pan_and_scan": detail == "high"}
        batch = self._processor(images=[image], **options)
        pixels = np.asarray(batch["pixel_values"], np.float32)
        features = {"pixel_values": pixels, "num_pictures": np.array([len(pixels)])}
        return PreparedImage(features, len(pixels) * self._num_tokens)

    def image_text(self, image: PreparedImage) -> str:
        """Source: `Gemma3Processor` in transformers 5.23."""
        begin, end = (
            self.template.text_of(self.config[f"{t}_token_index"]) for t in ("boi", "eoi")
        )
        picture = f"\n\n{begin}{self.template.image_token * self._num_tokens}{end}\n\n"
        num_crops = len(image.features["pixel_values"]) - 1
        if num_crops == 0:
            return picture
        crops = " ".join([picture] * num_crops)
        return f"Here is the original image {picture} and here are some crops to help you see better {crops}"

    def split_images(self, features: Features) -> list[Features]:
        counts = features["num_pictures"]
        pictures = np.split(features["pixel_values"], np.cumsum(counts)[:-1] if len(counts) else [])
        return [
            {"pixel_values": pixels, "num_pictures": counts[i : i + 1]}
            for i, pixels in enumerate(pictures[: len(counts)])
        ]

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        return {"pixel_values": np.concatenate([image["pixel_values"] for image in images])}

    def split_embeds(self, embeds: np.ndarray, images: Sequence[Features]) -> list[np.ndarray]:
        counts = [len(image["pixel_values"]) * self._num_tokens for image in images]
        return np.split(embeds, np.cumsum(counts)[:-1])
