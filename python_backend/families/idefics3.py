"""Idefics3 and SmolVLM: a large picture is cut into rows and columns of frames and seen once as a whole.

A video, of SmolVLM only, is text around its frames, which says when each is shown.

Dimension letters: T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from python_backend.errors import BundleError
from python_backend.families.base import Detail, Features, ModelFamily, PreparedImage
from python_backend.families.video_config import read_video_config
from python_backend.spec import TensorSpec
from python_backend.video import Video

if TYPE_CHECKING:
    from python_backend.chat_template import VideoTemplate

# Source: `Idefics3Processor` and `SmolVLMProcessor` in transformers 5.23.
_FAKE_TOKEN, _GLOBAL_TAG = "<fake_token_around_image>", "<global-img>"

_SMALL_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "_ ten twenty thirty forty fifty sixty seventy eighty ninety"


class Idefics3(ModelFamily):
    """Serving side of `Idefics3ForConditionalGeneration`."""

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        super().__init__(config, processor_dir)
        vision = config["vision_config"]
        self._frame, self._channels = vision["image_size"], vision["num_channels"]
        side: int = self._frame // vision["patch_size"] // config["scale_factor"]
        self._num_frame_tokens = side**2

    def load_processors(self) -> None:
        super().load_processors()
        self._check_frame(self._processor, "image")

    def _check_frame(self, processor: Any, kind: str) -> None:
        frame = processor.max_image_size["longest_edge"]
        if frame != self._frame:
            raise BundleError(
                f"the {kind} processor makes frames of {frame} pixels, the vision tower takes {self._frame}"
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

    @property
    def _frame_text(self) -> str:
        return self.template.image_token * self._num_frame_tokens

    @property
    def _whole_text(self) -> str:
        """What stands for a picture that is not cut."""
        return f"{_FAKE_TOKEN}{_GLOBAL_TAG}{self._frame_text}{_FAKE_TOKEN}"

    def image_text(self, image: PreparedImage) -> str:
        frame, whole = self._frame_text, self._whole_text
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
        whole = np.maximum(grids[:, 1], 1)  # frames of a video, or one picture
        counts = np.where(grids[:, 0] == 0, whole, grids.prod(axis=1) + 1)
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

    def load_processors(self) -> None:
        super().load_processors()
        self._check_frame(self._video_processor, "video")

    @property
    def _processor_class(self) -> Any:
        from transformers.models.smolvlm import image_processing_pil_smolvlm

        return image_processing_pil_smolvlm.SmolVLMImageProcessorPil

    @cached_property
    def _processor(self) -> Any:
        return self._processor_class.from_pretrained(self.processor_dir)

    @cached_property
    def _video_processor(self) -> Any:
        """Without cutting, the processor of pictures does what the one of videos does, which needs torch."""
        return self._processor_class.from_dict(dict(read_video_config(self.processor_dir)))

    @property
    def video_template(self) -> VideoTemplate | None:
        from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

        from python_backend.chat_template import VideoTemplate

        return VideoTemplate(DEFAULT_CHAT_TEMPLATE, "<video>")

    def prepare_video(self, video: Video) -> PreparedImage:
        """Its grid has no rows, and a column for each frame.

        Time stands in the features `times_s`, float64 [T], when each is shown, and `duration_s`, float64 [1].
        """
        batch = self._video_processor(images=[list(video.frames)], do_image_splitting=False)
        num_frames = len(video.frames)
        features = {
            "pixel_values": np.asarray(batch["pixel_values"][0], np.float32),
            "frame_grid": np.array([[0, num_frames]]),
            "times_s": np.array(video.times_s, np.float64),
            # A rate that was measured is not exact, and a full second must stay one.
            "duration_s": np.array([round(num_frames / video.fps, 3)]),
        }
        return PreparedImage(features, num_frames * self._num_frame_tokens, is_video=True)

    def image_text(self, image: PreparedImage) -> str:
        """Each frame of a video is a picture with its time before it.

        Source: `SmolVLMProcessor.replace_video_token` in transformers 5.23.
        """
        if not image.is_video:
            return super().image_text(image)
        from transformers.models.smolvlm import processing_smolvlm as texts

        times = image.features["times_s"]
        intro = texts.DEFAULT_VIDEO_INTRO.format(
            frame_count=number_in_words(len(times)),
            video_duration=timedelta(seconds=int(image.features["duration_s"][0])),
        )
        clocks = (f"{int(time // 60):02d}:{int(time % 60):02d}" for time in times)
        titles = (texts.FRAME_TIMESTAMP_MESSAGE.format(timestamp=clock) for clock in clocks)
        whole = self._whole_text
        return "".join([intro, *(title + whole for title in titles), texts.DEFAULT_MEDIA_OUTTRO])

    def split_frames(self, features: Features) -> Sequence[Features]:
        rows, num_frames = features["frame_grid"][0]
        if rows or not num_frames:
            return [features]
        frames = np.split(features["pixel_values"], num_frames)
        return [{"pixel_values": frame, "frame_grid": np.array([[0, 1]])} for frame in frames]


def number_in_words(number: int) -> str:
    """An integer from 1 to 999 in English, as the package `num2words` writes it."""
    small_numbers = _SMALL_NUMBERS.split()
    if number < len(small_numbers):
        return small_numbers[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS.split()[tens] + (f"-{small_numbers[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{small_numbers[hundreds]} hundred" + (f" and {number_in_words(rest)}" if rest else "")
