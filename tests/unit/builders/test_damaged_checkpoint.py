"""A checkpoint that cannot be served ends in one sentence, and the repository stays as it was."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from builders.checkpoint import Checkpoint
from builders.options import BuildOptions
from builders.pipeline import build
from python_backend.errors import BundleError, ParityError
from tests.tiny.shapes import SHARDED
from tests.tiny.tokenizer import TOKEN_IDS

SHARD = "model-00002-of-00002.safetensors"
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture
def checkpoint(tiny_models, tmp_path) -> Path:
    """A copy to damage: two safetensors files."""
    return shutil.copytree(tiny_models(SHARDED.name).checkpoint, tmp_path / "checkpoint")


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def output(tmp_path):
    """A repository that holds another model; it must look the same after the test."""
    folder = tmp_path / "repository"
    (folder / "other").mkdir(parents=True)
    (folder / "other" / "config.pbtxt").write_text("name: 'other'")
    before = listing(folder)
    yield folder
    assert listing(folder) == before


def build_into(output, checkpoint, report, **options):
    return build(BuildOptions(model=str(checkpoint), output=output, **options), report)


def refusal(output, checkpoint, report) -> str:
    """The sentence that a build ends with."""
    with pytest.raises(BundleError) as error:
        build_into(output, checkpoint, report, skip_verify=True)
    assert "\n" not in error.value.message
    return error.value.message


def rewrite_header(path: Path, change) -> None:
    """Let `change` edit the parsed header; the tensors stay where they are."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode().ljust(size)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def first(header) -> dict:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _cut_into_length(path):
    path.write_bytes(path.read_bytes()[:5])


def _cut_into_header(path):
    path.write_bytes(path.read_bytes()[:200])


def _empty(path):
    path.write_bytes(b"")


def _garbage_header(path):
    data = bytearray(path.read_bytes())
    data[8:20] = b"\xff" * 12
    path.write_bytes(bytes(data))


def _html_page(path):
    path.write_text("<html>404 not found</html>" * 100)


def _header_is_a_list(path):
    rewrite_header(path, lambda header: [1, 2])


def _entry_without_offsets(path):
    rewrite_header(path, lambda header: first(header).pop("data_offsets") and None)


def _negative_offset(path):
    rewrite_header(path, lambda header: first(header).update(data_offsets=[-4096, 0]))


def _backward_offsets(path):
    rewrite_header(path, lambda header: first(header)["data_offsets"].reverse())


def _shape_is_larger_than_the_bytes(path):
    rewrite_header(path, lambda header: first(header).update(shape=[9, 9, 9, 9]))


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _cut_into_length,
        _cut_into_header,
        _empty,
        _garbage_header,
        _html_page,
        _header_is_a_list,
        _entry_without_offsets,
        _negative_offset,
        _backward_offsets,
        _shape_is_larger_than_the_bytes,
    ],
)
def test_damaged_safetensors_file_is_named(output, checkpoint, report, damage):
    damage(checkpoint / SHARD)
    assert f"{SHARD} is not a complete safetensors file" in refusal(output, checkpoint, report)


def test_missing_shard_is_named(output, checkpoint, report):
    (checkpoint / SHARD).unlink()
    assert f"lacks {SHARD}" in refusal(output, checkpoint, report)


def test_quantized_dtype_is_refused(output, checkpoint, report):
    def to_int8(header):
        entry = first(header)
        entry.update(dtype="I8", shape=[entry["data_offsets"][1] - entry["data_offsets"][0]])

    rewrite_header(checkpoint / SHARD, to_int8)
    assert "dtype I8" in refusal(output, checkpoint, report)


def _rename(checkpoint: Path, old: str, new: str) -> None:
    for path in checkpoint.glob("*.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data.replace(old.encode(), new.encode()))


def test_missing_tensor_is_named(output, checkpoint, report):
    _rename(checkpoint, "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.xx_proj.weight")
    message = refusal(output, checkpoint, report)
    assert "has no tensor model.layers.1.mlp.up_proj.weight" in message


@pytest.mark.parametrize(
    "name", [EMBEDDINGS, "model.layers.0.mlp.down_proj.weight", "visual.patch_embed.proj.weight"]
)
def test_tensor_of_another_shape_than_the_config_says_is_named(output, checkpoint, report, name):
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            if name not in file.keys():  # noqa: SIM118 - not a dict
                continue
            tensors = {key: np.zeros((4, 4), np.float32) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, path)
    assert "config.json and weights do not belong together" in refusal(output, checkpoint, report)


def _edit_config(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_unknown_model_type_is_refused_with_the_supported_ones(output, checkpoint, report):
    _edit_config(checkpoint, model_type="blip_9000")
    message = refusal(output, checkpoint, report)
    assert "blip_9000" in message
    assert "qwen2_5_vl" in message


@pytest.mark.parametrize("config", [{"quant_method": "awq", "bits": 3}, {"bits": 4}])
def test_quantized_checkpoint_is_refused(output, checkpoint, report, config):
    _edit_config(checkpoint, quantization_config=config)
    message = refusal(output, checkpoint, report)
    assert "is quantized" in message
    assert "--precision int8" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_config_that_is_no_json_object_is_refused(output, checkpoint, report, text):
    (checkpoint / "config.json").write_text(text)
    assert "config.json" in refusal(output, checkpoint, report)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "preprocessor_config.json", "*.safetensors"]
)
def test_missing_file_is_refused(output, checkpoint, report, name):
    for path in checkpoint.glob(name):
        path.unlink()
    if name == "tokenizer.json":  # transformers would make it from these
        (checkpoint / "vocab.json").unlink()
        (checkpoint / "merges.txt").unlink()
    refusal(output, checkpoint, report)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(BundleError, match="not a folder"):
        Checkpoint(tmp_path / "nowhere")


def _record_wrong_reference(checkpoint: Path) -> None:
    """A recording beside the checkpoint, with the right prompt and wrong numbers."""
    begin, end = TOKEN_IDS["<|im_start|>"], TOKEN_IDS["<|im_end|>"]
    case = {
        "name": "wrong numbers",
        "messages": [{"role": "user", "content": "Hello"}],
        "images": [],
        "prompt_token_ids": [begin, end],
        "greedy_token_ids": [1, 2],
    }
    (checkpoint / "reference.json").write_text(json.dumps({"cases": [case]}))
    logits = np.ones((2, 8), np.float32)
    save_file({"case0.logits": logits}, checkpoint / "reference.safetensors")


def test_failed_verification_names_the_case_and_leaves_nothing(output, checkpoint, report):
    _record_wrong_reference(checkpoint)
    with pytest.raises(ParityError, match="wrong numbers"):
        build_into(output, checkpoint, report)


class InterruptedReport:
    """Ctrl-C, or a bug, at the given stage."""

    def __init__(self, num_stages: int, error: BaseException) -> None:
        self._num_left, self._error = num_stages, error

    def stage(self, title: str) -> None:
        if self._num_left == 0:
            raise self._error
        self._num_left -= 1

    def progress(self, what: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.mark.parametrize("num_stages", range(4))
def test_interrupted_build_leaves_nothing(output, checkpoint, num_stages):
    for error in (KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)):
            build_into(output, checkpoint, InterruptedReport(num_stages, error), skip_verify=True)


class FullDiskReport(InterruptedReport):
    """No room in the middle of a file."""

    def __init__(self) -> None:
        super().__init__(99, OSError())

    def progress(self, what: str, done: int, total: int) -> None:
        if what.startswith("decoder"):
            raise OSError(28, "No space left on device")


def test_full_disk_leaves_nothing(output, checkpoint):
    with pytest.raises(OSError, match="No space left"):
        build_into(output, checkpoint, FullDiskReport(), skip_verify=True)
