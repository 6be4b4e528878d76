"""Llama 3.2 Vision: a picture becomes up to four square tiles, which the decoder attends to.

Every picture has as many embeddings as one with all of its tiles: those that fill up are attended to by the
tokens before the first picture. A request's embeddings are laid out with them at the end, so that whatever
else a token sees is one range:

    used tiles of picture 1 | used tiles of picture 2 | ... | fill of picture 1 | fill of picture 2 | ...

Dimension letters: T tiles, S prompt tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from python_backend.errors import BundleError
from python_backend.families.base import Detail, Features, ModelFamily, PreparedImage
from python_backend.spec import TensorSpec


class Mllama(ModelFamily):
    """Serving side of `MllamaForConditionalGeneration`."""

    def load_processors(self) -> None:
        super().load_processors()
        processor, vision = self._processor, self.config["vision_config"]
        found = processor.size["height"], processor.max_image_tiles
        wanted = vision["image_size"], vision["max_num_tiles"]
        if found != wanted:
            raise BundleError(
                f"the image processor makes tiles of {found[0]} pixels, at most {found[1]} of a picture; the "
                f"vision tower takes {wanted[1]} of {wanted[0]}"
            )

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.mllama import image_processing_pil_mllama

        processor = image_processing_pil_mllama.MllamaImageProcessorPil
        return processor.from_pretrained(self.processor_dir)

    @property
    def image_token_id(self) -> int:
        return int(self.config["image_token_index"])

    @property
    def _max_tiles(self) -> int:
        return int(self.config["vision_config"]["max_num_tiles"])

    @property
    def encoder_tensors(self) -> tuple[TensorSpec, ...]:
        vision = self.config["vision_config"]
        pixels = ("T", vision["num_channels"], vision["image_size"], vision["image_size"])
        return (
            TensorSpec("pixel_values", "float32", pixels),
            TensorSpec("aspect_ratio_ids", "int64", ("num_images",)),
        )

    def prepare_image(self, image: Image.Image, detail: Detail, num_images: int) -> PreparedImage:
        options = {"max_image_tiles": 1} if detail == "low" else {}
        batch = self._processor(images=[[image]], **options)
        ids = np.asarray(batch["aspect_ratio_ids"], np.int64)[0]
        pixels = np.asarray(batch["pixel_values"], np.float32)[0, 0, : self._num_used_tiles(ids)[0]]
        return PreparedImage({"pixel_values": pixels, "aspect_ratio_ids": ids}, 1)

    def _num_used_tiles(self, ratio_ids: np.ndarray) -> np.ndarray:
        ratios = np.array(self.config["vision_config"]["supported_aspect_ratios"])
        tiles: np.ndarray = ratios[ratio_ids - 1].prod(axis=1)
        return tiles

    def split_images(self, features: Features) -> list[Features]:
        ids = features["aspect_ratio_ids"]
        ends = np.cumsum(self._num_used_tiles(ids))[:-1] if len(ids) else []
        tiles = np.split(features["pixel_values"], ends)
        return [
            {"pixel_values": pixels, "aspect_ratio_ids": ids[i : i + 1]}
            for i, pixels in enumerate(tiles[: len(ids)])
        ]

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        shape = (len(images), self._max_tiles, *images[0]["pixel_values"].shape[1:])
        pixels = np.zeros(shape, np.float32)
        for row, image in zip(pixels, images, strict=True):
            row[: len(image["pixel_values"])] = image["pixel_values"]
        ids = np.concatenate([image["aspect_ratio_ids"] for image in images])
        return {"pixel_values": pixels, "aspect_ratio_ids": ids}

    def split_embeds(self, embeds: np.ndarray, images: Sequence[Features]) -> list[np.ndarray]:
        return np.split(embeds, len(images))

    def join_embeds(self, embeds: Sequence[np.ndarray], images: Sequence[Features]) -> np.ndarray:
        counts = self._num_used_rows(images)
        used = [rows[:count] for rows, count in zip(embeds, counts, strict=True)]
        fill = [rows[count:] for rows, count in zip(embeds, counts, strict=True)]
        return np.concatenate([*used, *fill])

    def _num_used_rows(self, images: Sequence[Features]) -> list[int]:
        """Embeddings of each image's used tiles."""
        num_tokens = num_tile_tokens(self.config["vision_config"])
        return [len(image["pixel_values"]) * num_tokens for image in images]

    def cross_range(self, token_ids: np.ndarray, images: Sequence[Features]) -> np.ndarray:
        """A token sees the last picture before it, and with it those that stand directly before that one.

        Source: `get_cross_attention_token_mask` in transformers 5.23 `processing_mllama.py`.
        """
        seen = np.zeros((len(token_ids), 2), np.int64)
        first = row = 0
        before = -1
        places = np.flatnonzero(token_ids == self.image_token_id).tolist()
        for place, num_rows in zip(places, self._num_used_rows(images), strict=True):
            if place != before + 1:
                first = row
            row += num_rows
            seen[place:] = first, row
            before = place
        return seen


def num_tile_tokens(vision: Mapping[str, Any]) -> int:
    """Embeddings of one tile: its class token and its patches.

    Args:
        vision: the vision part of config.json.
    """
    return int((vision["image_size"] // vision["patch_size"]) ** 2 + 1)
