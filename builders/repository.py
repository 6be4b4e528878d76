"""The Triton model repository: the models of a checkpoint, generated from the manifest and the family.

<name>              ensemble, and the home of manifest.json and the processor's files
<name>-preprocess   messages and image files to token ids and pixels
<name>-encoder      pixels to image embeddings
<name>-decoder      tokens to text, in-flight batching

A checkpoint that reads text only has no encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from python_backend import tensor_names as names
from python_backend.config import EngineConfig
from python_backend.manifest import VERSION_DIR, Manifest
from python_backend.spec import TensorSpec

_HEADER = "# Written by builders/build.py; build the model again instead of editing this file.\n"
_TRITON_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "bytes": "TYPE_STRING",
}
_MAX_ENCODER_REQUESTS = {"onnxruntime": 1, "tensorrt": 16, "tensorrt_rtx": 16}
"""Requests whose pictures go through the encoder together. On a CPU a batch computes no faster, and
nobody gets an answer before all of it is done: 8 requests at once had a median time to first token of
55 s instead of 22 s."""

_REQUEST = (
    TensorSpec(names.PROMPT, "bytes", (1,)),
    TensorSpec(names.IMAGES, "bytes", ("num_images",)),
)
_SAMPLING = TensorSpec(names.SAMPLING, "bytes", (1,))
_HASHES = TensorSpec(names.IMAGE_HASHES, "bytes", (1, "num_images"))
_ANSWER = (TensorSpec(names.TEXT, "bytes", (1,)), TensorSpec(names.DETAILS, "bytes", (1,)))
_CANCEL = TensorSpec(names.CANCEL, "bytes", (1,))
_TOKENS = (
    TensorSpec(names.PROMPT_TOKEN_IDS, "int64", ("num_tokens",)),
    TensorSpec(names.IMAGE_INDEX, "int64", ("num_tokens",)),
    TensorSpec(names.POSITION_IDS, "int64", ("axes", "num_tokens")),
    TensorSpec(names.IMAGE_LENGTHS, "int64", ("num_images",)),
)


_CROSS_RANGE = TensorSpec(names.CROSS_RANGE, "int64", ("num_tokens", 2))


def write_repository(
    repository: Path, manifest: Manifest, encoder_tensors: tuple[TensorSpec, ...]
) -> None:
    """Write config.pbtxt and model.py of the models into `repository`.

    Args:
        repository: model folders are made in it as needed.
        manifest: of the model.
        encoder_tensors: what crosses from preprocess to encoder, from the family.
    """
    name = manifest.name
    configs = {
        name: _ensemble(manifest, encoder_tensors),
        name + names.PREPROCESS_SUFFIX: _preprocess(manifest, encoder_tensors),
        name + names.DECODER_SUFFIX: _decoder(manifest),
    }
    if manifest.sees_images:
        configs[name + names.ENCODER_SUFFIX] = _encoder(manifest, encoder_tensors)
    for model, config in configs.items():
        folder = repository / model / VERSION_DIR
        folder.mkdir(parents=True, exist_ok=True)
        (repository / model / "config.pbtxt").write_text(_HEADER + config, encoding="utf-8")
        stage = model.removeprefix(name).removeprefix("-")
        if stage:
            (folder / "model.py").write_text(_model_py(stage), encoding="utf-8")


def _model_py(stage: str) -> str:
    return f'''"""The {stage} stage; see `python_backend.stages.{stage}`."""

from python_backend.stages.{stage} import {stage.capitalize()}Model as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def _ensemble(manifest: Manifest, encoder_tensors: tuple[TensorSpec, ...]) -> str:
    name = manifest.name
    tokens = [*(tensor.name for tensor in _tokens(manifest)), names.IMAGE_HASHES]
    embeds = [tensor.name for tensor in _embeds(manifest)]
    images = [tensor.name for tensor in encoder_tensors]
    steps = [
        _step(name + names.PREPROCESS_SUFFIX, [names.PROMPT, names.IMAGES], [*tokens, *images]),
        _step(
            name + names.DECODER_SUFFIX,
            [*tokens, *embeds, names.SAMPLING],
            [names.TEXT, names.DETAILS],
        ),
    ]
    if embeds:
        inputs = [*images, names.IMAGE_HASHES]
        steps.insert(1, _step(name + names.ENCODER_SUFFIX, inputs, embeds))
    return (
        f'name: "{name}"\nplatform: "ensemble"\nmax_batch_size: 0\n'
        + _tensors("input", (*_REQUEST, _SAMPLING))
        + _tensors("output", _ANSWER)
        + "ensemble_scheduling {\n  step [\n"
        + ",\n".join(steps)
        + "\n  ]\n}\n"
        + _parameters(
            {
                names.PARAM_SERVED_NAME: manifest.served_model_name,
                names.PARAM_MAX_MODEL_LEN: str(manifest.max_model_len),
                names.PARAM_MAX_IMAGES: str(manifest.max_images),
                **({names.PARAM_TOOL_FORMAT: manifest.tool_format} if manifest.tool_format else {}),
                **({names.PARAM_REASONS: "true"} if manifest.reasoning_marks else {}),
                **({names.PARAM_TAKES_VIDEOS: "true"} if manifest.takes_videos else {}),
            }
        )
    )


def _preprocess(manifest: Manifest, encoder_tensors: tuple[TensorSpec, ...]) -> str:
    return (
        _python_model(manifest.name + names.PREPROCESS_SUFFIX)
        + _ONE_INSTANCE
        + _tensors("input", _REQUEST)
        + _tensors("output", (*_tokens(manifest), *map(_with_batch_axis, encoder_tensors), _HASHES))
        + _parameters({"model": manifest.name})
    )


def _encoder(manifest: Manifest, encoder_tensors: tuple[TensorSpec, ...]) -> str:
    config = EngineConfig()
    hashes = TensorSpec(_HASHES.name, _HASHES.dtype, _HASHES.shape[1:])
    return (
        _python_model(manifest.name + names.ENCODER_SUFFIX, _MAX_ENCODER_REQUESTS[manifest.engine])
        + _ONE_INSTANCE
        + "# Requests that wait go through the encoder together, max_batch_size at once, ragged.\n"
        + "dynamic_batching { }\n"
        + _tensors("input", (*encoder_tensors, hashes), "allow_ragged_batch: true")
        + _tensors("output", _embeds(manifest))
        + _parameters(
            {
                "model": manifest.name,
                "num_threads": str(config.num_threads),
                "encoder_cache_bytes": str(config.encoder_cache_bytes),
                "max_encoder_patches": str(config.max_encoder_patches),
            }
        )
    )


def _decoder(manifest: Manifest) -> str:
    config = EngineConfig()
    on_gpu = {
        # Image embeddings are left where the encoder computed them.
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "max_cuda_graphs": str(config.max_cuda_graphs),
    }
    on_cpu = {"max_draft_tokens": str(config.max_draft_tokens)}
    embeds = map(_with_batch_axis, _embeds(manifest))
    inputs = (*_tokens(manifest), _HASHES, *embeds, _SAMPLING, _CANCEL)
    return (
        _python_model(manifest.name + names.DECODER_SUFFIX)
        + _ONE_INSTANCE
        + "model_transaction_policy { decoupled: true }\n"
        + "# All optional: a request has either everything but cancel, or cancel alone.\n"
        + _tensors("input", inputs, "optional: true")
        + _tensors("output", _ANSWER)
        + _parameters(
            {
                "model": manifest.name,
                "max_num_seqs": str(manifest.max_seqs),
                "max_num_batched_tokens": str(config.max_num_batched_tokens),
                "max_waiting": str(config.max_waiting),
                "num_threads": str(config.num_threads),
                "prefix_cache": json.dumps(config.prefix_cache),
                **(on_cpu if manifest.engine == "onnxruntime" else on_gpu),
            }
        )
    )


def _tokens(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """What preprocess tells the decoder of a prompt."""
    return _TOKENS if manifest.cross_attention is None else (*_TOKENS, _CROSS_RANGE)


def _embeds(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """What the encoder hands to the decoder, if there is one."""
    if manifest.vision_encoder is None:
        return ()
    output = manifest.vision_encoder.spec.computed_outputs[0]
    return (TensorSpec(names.IMAGE_EMBEDS, output.dtype, output.shape),)


def _with_batch_axis(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, (1, *tensor.shape))


_ONE_INSTANCE = "instance_group [ { count: 1, kind: KIND_CPU } ]\n"


def _python_model(name: str, max_batch_size: int = 0) -> str:
    return f'name: "{name}"\nbackend: "python"\nmax_batch_size: {max_batch_size}\n'


def _tensors(kind: str, tensors: Iterable[TensorSpec], extra: str = "") -> str:
    rows = []
    for tensor in tensors:
        dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in tensor.shape)
        fields = [
            f'name: "{tensor.name}"',
            f"data_type: {_TRITON_TYPES[tensor.dtype]}",
            f"dims: [ {dims} ]",
            *([extra] if extra else []),
        ]
        rows.append(f"  {{ {', '.join(fields)} }}")
    return f"{kind} [\n" + ",\n".join(rows) + "\n]\n"


def _step(model: str, inputs: Iterable[str], outputs: Iterable[str]) -> str:
    maps = [f'      input_map {{ key: "{name}", value: "{name}" }}' for name in inputs]
    maps += [f'      output_map {{ key: "{name}", value: "{name}" }}' for name in outputs]
    return (
        f'    {{\n      model_name: "{model}"\n      model_version: -1\n'
        + "\n".join(maps)
        + "\n    }"
    )


def _parameters(parameters: Mapping[str, str]) -> str:
    return "".join(
        # JSON's string escapes are the text format's.
        f'parameters {{ key: "{key}", value {{ string_value: {json.dumps(value)} }} }}\n'
        for key, value in parameters.items()
    )
