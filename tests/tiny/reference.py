"""What Hugging Face makes of a conversation, with none of this project's code in between."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, GenerationConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    Qwen3VLVideoProcessor,
    smart_resize,
)
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    SmolVLMProcessor,
)
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

Inputs = dict[str, torch.Tensor]


def hf_inputs(checkpoint: Path, messages: Sequence[Mapping[str, Any]], **options: Any) -> Inputs:
    """Inputs of the Hugging Face model, as the processor of its family makes them."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
    images = [Image.open(io.BytesIO(p["image"])) for p in parts if p["type"] == "image"]
    videos = [part for part in parts if part["type"] == "video"]
    template = None
    if videos:
        options["videos"] = videos
        template = DEFAULT_CHAT_TEMPLATE if config["model_type"] == "smolvlm" else None
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    make = _MAKERS.get(config["model_type"], _qwen)
    return make(checkpoint, config, tokenizer, text, images, **options)


def _qwen(
    checkpoint: Path,
    config: Any,
    tokenizer: Any,
    text: str,
    images: list[Image.Image],
    videos: Sequence[Mapping[str, Any]] = (),
) -> Inputs:
    """As the line's processors of transformers 5.23, which themselves want torchvision for videos."""
    placeholder, inputs = "<|image_pad|>", {}
    if images:
        processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        inputs = dict(processor(images=images, return_tensors="pt"))
        for grid in inputs["image_grid_thw"]:
            text = text.replace(placeholder, "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<|placeholder|>", placeholder)
    if videos and config["model_type"] == "qwen3_vl":
        video_inputs, text = _qwen3_videos(checkpoint, tokenizer, text, videos)
        inputs |= video_inputs
    elif videos:
        inputs |= _qwen_videos(checkpoint, videos)
        if config["model_type"] != "qwen2_5_vl":
            del inputs["second_per_grid_ts"]
        for grid in inputs["video_grid_thw"]:
            text = text.replace("<|video_pad|>", "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<|placeholder|>", "<|video_pad|>")
    input_ids = tokenizer(text, return_tensors="pt")["input_ids"]
    is_image = input_ids == tokenizer.convert_tokens_to_ids(placeholder)
    is_video = input_ids == tokenizer.convert_tokens_to_ids("<|video_pad|>")
    kinds = is_image.int() + 2 * is_video.int()
    return {"input_ids": input_ids, "mm_token_type_ids": kinds, **inputs}


def qwen_video_processor() -> Any:
    """The class `Qwen2VLVideoProcessor`, of which nothing that is called here needs torchvision."""
    import transformers.video_processing_utils  # noqa: F401 - looks for the real one

    name = "torchvision.transforms.v2.functional"
    folders = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2"]
    fakes = {folder: ModuleType(folder) for folder in (*folders, name)}
    with pytest.MonkeyPatch.context() as patch:
        for folder, fake in fakes.items():
            patch.setitem(sys.modules, folder, fake)
        module = import_module("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    return module.Qwen2VLVideoProcessor


def _qwen_videos(checkpoint: Path, videos: Sequence[Mapping[str, Any]]) -> Inputs:
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    patch, merge, depth = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    pixels, grids = [], []
    for video in videos:
        batch = _frames(processor, video, size=processor.size, factor=patch * merge)[None]
        patches, *grid = qwen_video_processor().patchify(None, batch, patch, merge, depth)
        pixels.append(patches[0])
        grids.append(grid)
    return {
        "pixel_values_videos": torch.cat(pixels),
        "video_grid_thw": torch.tensor(grids),
        "second_per_grid_ts": torch.tensor([depth / video["fps"] for video in videos]),
    }


class _PictureProcessor(Qwen2VLImageProcessorPil):
    """One that resizes to any size."""

    resize = PilBackend.resize


class _Qwen3VLProcessor(Qwen3VLProcessor):
    """The real one, without the check of its video processor's class, which wants torchvision."""

    def check_argument_for_proper_class(self, *_: Any) -> None: ...


def _qwen3_videos(
    checkpoint: Path, tokenizer: Any, text: str, videos: Sequence[Mapping[str, Any]]
) -> tuple[Inputs, str]:
    """Inputs, and the text with its videos expanded; only the resizing itself is not the real one."""
    processor = Qwen3VLVideoProcessor.from_pretrained(checkpoint)
    patch, merge, depth = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    pixels, grids, metadata = [], [], []
    for video in videos:
        num_frames, fps = len(video["video"]), video["fps"]
        width, height = Image.open(io.BytesIO(video["video"][0])).size
        height, width = smart_resize(
            num_frames,
            height,
            width,
            temporal_factor=depth,
            factor=patch * merge,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        size = SizeDict(height=height, width=width)
        batch = _frames(_PictureProcessor.from_pretrained(checkpoint), video, size=size)[None]
        patches, *grid = processor.patchify(batch, patch, merge, depth)
        pixels.append(patches[0])
        grids.append(grid)
        indices = list(range(num_frames))
        metadata.append(VideoMetadata(num_frames, fps=fps, frames_indices=indices))
    inputs = {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
    pictures = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    whole = _Qwen3VLProcessor(pictures, tokenizer, processor)
    replacements = [
        whole.replace_video_token({**inputs, "video_metadata": metadata}, i)
        for i in range(len(videos))
    ]
    (text,), _ = whole.get_text_with_replacements([text], videos_replacements=replacements)
    return inputs, text


def _text_only(
    checkpoint: Path, config: Any, tokenizer: Any, text: str, images: list[Image.Image]
) -> Inputs:
    return {
        "input_ids": tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    }


class _LlavaOnevisionProcessor(LlavaOnevisionProcessor):
    """The real one, without the check that its video processor is there: it wants torchvision."""

    def check_argument_for_proper_class(self, *_: Any) -> None: ...


def _llava_onevision(
    checkpoint: Path,
    config: Any,
    tokenizer: Any,
    text: str,
    images: list[Image.Image],
    videos: Sequence[Mapping[str, Any]] = (),
) -> Inputs:
    vision = config["vision_config"]
    side = vision["image_size"]
    pooled = -(-(side // vision["patch_size"]) // 2)
    for video in videos:
        num_tokens = len(video["video"]) * pooled**2 + 1
        text = text.replace("<video>", "<placeholder>" * num_tokens, 1)
    text = text.replace("<placeholder>", "<video>")
    processor = _LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil.from_pretrained(checkpoint),
        tokenizer=tokenizer,
        video_processor=None,
        num_image_tokens=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config["vision_aspect_ratio"],
    )
    processor.video_token = None  # they are in the text already
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    inputs = {name: inputs[name] for name in inputs if name != "attention_mask"}
    if videos:
        size = SizeDict(height=side, width=side)
        frames = [_frames(processor.image_processor, video, size=size) for video in videos]
        inputs["pixel_values_videos"] = torch.stack(frames)
    return inputs


def _frames(processor: Any, video: Mapping[str, Any], **resizing: Any) -> torch.Tensor:
    """Frames [F, C, H, W] resized by the processor of pictures: the one of videos has torchvision do it."""
    frames = []
    for file in video["video"]:
        frame = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)
        frame = processor.resize(frame, resample=processor.resample, **resizing)
        frame = processor.rescale(frame, processor.rescale_factor)
        frames.append(processor.normalize(frame, processor.image_mean, processor.image_std))
    return torch.from_numpy(np.stack(frames).astype(np.float32))


def _gemma3(
    checkpoint: Path,
    config: Any,
    tokenizer: Any,
    text: str,
    images: list[Image.Image],
    **options: Any,
) -> Inputs:
    # Attributes that Gemma's own tokenizer class has.
    for name in ("boi", "eoi", "image"):
        token = tokenizer.convert_ids_to_tokens(config[f"{name}_token_index"])
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", config[f"{name}_token_index"])
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil.from_pretrained(checkpoint),
        tokenizer=tokenizer,
        image_seq_length=config["mm_tokens_per_image"],
    )
    nested = [images] if images else None
    inputs = processor(text=[text], images=nested, return_tensors="pt", **options)
    return {name: inputs[name] for name in inputs if name != "attention_mask"}


class _SmolVLMProcessor(SmolVLMProcessor):
    """The real one, without its video processor, which wants torchvision, and num2words."""

    def __init__(self, image_processor: Any, tokenizer: Any, image_seq_len: int) -> None:
        self.fake_image_token, self.global_image_token = "<fake_token_around_image>", "<global-img>"
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_seq_len = image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, None)

    def check_argument_for_proper_class(self, *_: Any) -> None: ...


def _idefics3(
    checkpoint: Path,
    config: Any,
    tokenizer: Any,
    text: str,
    images: list[Image.Image],
    videos: Sequence[Mapping[str, Any]] = (),
) -> Inputs:
    vision = config["vision_config"]
    side = vision["image_size"] // vision["patch_size"] // config["scale_factor"]
    if config["model_type"] == "smolvlm":
        make, image_processor = _SmolVLMProcessor, SmolVLMImageProcessorPil
    else:
        make, image_processor = Idefics3Processor, Idefics3ImageProcessorPil
    processor = make(image_processor.from_pretrained(checkpoint), tokenizer, image_seq_len=side**2)
    if videos:
        return _smolvlm_videos(checkpoint, processor, text, images, videos)
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    names = ("input_ids", "pixel_values", "pixel_attention_mask")
    return {name: inputs[name] for name in names if name in inputs}


_NUMBER_WORDS = {1: "one", 3: "three", 4: "four", 5: "five"}


def _smolvlm_videos(
    checkpoint: Path,
    processor: SmolVLMProcessor,
    text: str,
    images: list[Image.Image],
    videos: Sequence[Mapping[str, Any]],
) -> Inputs:
    """Pixels are of the videos alone, as many frames of each: images' have the same name in Hugging Face."""
    pictures = processor.image_processor
    video_processor = SmolVLMVideoProcessor.from_pretrained(checkpoint)
    size, resample = SizeDict(**video_processor.size), video_processor.resample

    def resize(_: Any, frames: torch.Tensor, size: SizeDict, resample: Any, **__: Any) -> Any:
        resized = [PilBackend.resize(pictures, frame.numpy(), size, resample) for frame in frames]
        return torch.from_numpy(np.stack(resized))

    batch, metadata = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseVideoProcessor, "resize", resize)  # which has torchvision do it
        patch.setattr(processing_smolvlm, "num2words", _NUMBER_WORDS.__getitem__)
        for video in videos:
            files = [Image.open(io.BytesIO(file)).convert("RGB") for file in video["video"]]
            frames = torch.from_numpy(np.stack([np.asarray(file) for file in files]))
            frames = video_processor.resize(frames.permute(0, 3, 1, 2), size, resample)
            scaled = [pictures.rescale(f.numpy(), video_processor.rescale_factor) for f in frames]
            mean, std = video_processor.image_mean, video_processor.image_std
            batch.append(np.stack([pictures.normalize(frame, mean, std) for frame in scaled]))
            num_frames, fps = len(files), video["fps"]
            indices = list(range(num_frames))
            metadata.append(
                VideoMetadata(
                    num_frames, fps=fps, duration=num_frames / fps, frames_indices=indices
                )
            )
        inputs = {
            "pixel_values": torch.from_numpy(np.stack(batch).astype(np.float32)),
            "video_metadata": metadata,
        }
        of_videos = [processor.replace_video_token(inputs, i) for i in range(len(videos))]
    of_images = []
    if images:
        grids = pictures(images=[images], return_row_col_info=True)
        of_images = [processor.replace_image_token(grids, i) for i in range(len(images))]
    (text,), _ = processor.get_text_with_replacements([text], of_images, of_videos)
    input_ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    return {"input_ids": input_ids, "pixel_values": inputs["pixel_values"]}


def _mllama(
    checkpoint: Path, config: Any, tokenizer: Any, text: str, images: list[Image.Image]
) -> Inputs:
    tokenizer.bos_token = "<|endoftext|>"  # which the chat template has written already
    processor = MllamaProcessor(MllamaImageProcessorPil.from_pretrained(checkpoint), tokenizer)
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    return {name: inputs[name] for name in inputs if name != "attention_mask"}


_MAKERS = {
    "llava_onevision": _llava_onevision,
    "gemma3": _gemma3,
    "gemma3_text": _text_only,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "mllama": _mllama,
}


def hf_greedy(
    model: Any, inputs: Mapping[str, torch.Tensor], num_tokens: int
) -> tuple[list[int], float]:
    """Greedy tokens, and the smallest lead that a chosen token has over the second."""
    with torch.no_grad():
        output = model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=num_tokens,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ),
        )
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    top = torch.cat(output.logits).topk(2).values
    return tokens, float((top[:, 0] - top[:, 1]).min())


def hf_prompt_logprobs(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[float]:
    """Log probability of every token of a prompt but the first."""
    token_ids = inputs["input_ids"]
    with torch.no_grad():
        logits = model(**inputs, attention_mask=torch.ones_like(token_ids)).logits
    # Some families' image token has no logit; nobody asks for that one.
    known = token_ids.clamp(max=logits.shape[-1] - 1)
    logprobs = logits[0, :-1].log_softmax(-1).gather(1, known[0, 1:, None])
    values: list[float] = logprobs[:, 0].tolist()
    return values
