"""Graphs for onnxruntime-genai: python export_onnxruntime.py <checkpoint> <folder> <threads> <size>.

Its builder makes the decoder only. This adds the vision encoder, for pictures of `size` squared, and the
embedding of tokens, and tells genai_config.json of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModelForImageTextToText

checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
num_threads, picture_size = int(sys.argv[3]), int(sys.argv[4])

hub = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
preprocessor = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
patch_size, merge_size = preprocessor["patch_size"], preprocessor["merge_size"]
grid_size = picture_size // patch_size


class Vision(torch.nn.Module):
    """The vision encoder with the patches of one picture of a known size."""

    def __init__(self, visual: torch.nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
        grid = torch.tensor([[1, grid_size, grid_size]])
        # The grid stays an input of the graph, because the library sets it.
        return self.visual(pixel_values, grid).pooler_output + 0.0 * image_grid_thw.sum()


def export_vision(visual: torch.nn.Module) -> None:
    """Trace it, which makes constants of everything that follows from the grid."""
    features = 3 * preprocessor["temporal_patch_size"] * patch_size**2
    inputs = (
        torch.rand(grid_size**2, features),
        torch.tensor([[1, grid_size, grid_size]]),
    )
    with torch.no_grad():
        torch.onnx.export(
            Vision(visual).eval(),
            inputs,
            folder / "vision.onnx",
            input_names=["pixel_values", "image_grid_thw"],
            output_names=["image_features"],
            opset_version=17,
            dynamo=False,
        )


def export_embedding(table: np.ndarray) -> None:
    """Rows of the table, those of placeholders replaced by the picture's in their order."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embeds"]),
        helper.make_node("Equal", ["input_ids", "image_token_id"], ["is_image"]),
        helper.make_node("NonZero", ["is_image"], ["found"]),
        helper.make_node("Transpose", ["found"], ["places"], perm=[1, 0]),
        # Without a picture there are rows all the same, and no places for them.
        helper.make_node("Shape", ["places"], ["count"], start=0, end=1),
        helper.make_node("Slice", ["image_features", "zero", "count"], ["rows"]),
        helper.make_node("ScatterND", ["embeds", "places", "rows"], ["inputs_embeds"]),
    ]
    hidden = table.shape[1]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["rows", hidden]),
        ],
        [
            helper.make_tensor_value_info(
                "inputs_embeds", TensorProto.FLOAT, ["batch", "tokens", hidden]
            )
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array(hub["image_token_id"], np.int64), "image_token_id"),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(
        model, folder / "embedding.onnx", save_as_external_data=True, location="embedding.data"
    )


def write_configs() -> None:
    """What the library has to know of the graphs."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    model: dict[str, Any] = config["model"]
    session = {
        "log_id": "onnxruntime-genai",
        "provider_options": [],
        "intra_op_num_threads": num_threads,
    }
    model["decoder"]["session_options"] = session
    model["embedding"] = {
        "filename": "embedding.onnx",
        "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
        "outputs": {"inputs_embeds": "inputs_embeds"},
        "session_options": session,
    }
    model["vision"] = {
        "filename": "vision.onnx",
        "config_filename": "processor_config.json",
        "spatial_merge_size": merge_size,
        "tokens_per_second": hub["vision_config"]["tokens_per_second"],
        "patch_size": patch_size,
        "inputs": {"pixel_values": "pixel_values", "image_grid_thw": "image_grid_thw"},
        "outputs": {"image_features": "image_features"},
        "session_options": session,
    }
    for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
        model[name] = hub[name]
    # Requests cannot say to ignore it: no token of the tokenizer's ends an answer.
    model["eos_token_id"] = hub["vocab_size"] - 1
    config["search"] |= {"do_sample": False, "top_k": 1, "top_p": 1.0, "temperature": 1.0}
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    steps = (
        ("DecodeImage", {"color_space": "RGB"}),
        ("ConvertRGB", None),
        (
            "Resize",
            {
                "width": picture_size,
                "height": picture_size,
                "smart_resize": 1,
                "min_pixels": preprocessor["min_pixels"],
                "max_pixels": preprocessor["max_pixels"],
                "patch_size": patch_size,
                "merge_size": merge_size,
            },
        ),
        ("Rescale", {"rescale_factor": 1 / 255}),
        (
            "Normalize",
            {
                "mean": preprocessor["image_mean"],
                "std": preprocessor["image_std"],
                "qwen2_5_vl": 1,
            },
        ),
        (
            "PatchImage",
            {
                "patch_size": patch_size,
                "temporal_patch_size": preprocessor["temporal_patch_size"],
                "merge_size": merge_size,
            },
        ),
    )
    transforms = [
        {"operation": {"name": kind.lower(), "type": kind} | ({"attrs": attrs} if attrs else {})}
        for kind, attrs in steps
    ]
    processor = {"processor": {"name": "qwen2_5_image_processor", "transforms": transforms}}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1), encoding="utf-8")


builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
builder += ["--input", str(checkpoint), "--output", str(folder), "--precision", "fp32"]
builder += ["--execution_provider", "cpu", "--extra_options", "exclude_embeds=true"]
# Not in this project's folder: the builder has a package of the same name as one of the project's.
subprocess.run(builder, check=True, cwd=folder)
model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
export_vision(model.model.visual)
export_embedding(model.get_input_embeddings().weight.detach().numpy())
write_configs()
