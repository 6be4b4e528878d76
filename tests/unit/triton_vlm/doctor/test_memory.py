"""The arithmetic, against sums done by hand and against the arrays that are really allocated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.checkpoint import Checkpoint
from builders.families import family_graphs
from builders.families.base import BuildLimits
from builders.options import BuildOptions
from builders.pipeline import build
from builders.precision import Precision
from python_backend.gpu import Gpu
from python_backend.kv_cache import KVCache
from python_backend.spec import GraphSpec, TensorSpec
from tests.tiny.packing import PACKINGS, pack_checkpoint
from tests.tiny.shapes import SHAPES, TIED
from triton_vlm.doctor.memory import (
    Activations,
    CacheSize,
    Footprint,
    cache_size,
    cache_token_bytes,
    lengths_up_to,
    table,
)
from triton_vlm.doctor.model import DEFAULT_MAX_IMAGES, gpu_footprint, host_footprint, read_model
from triton_vlm.launch_error import LaunchError

ROOT = Path(__file__).parents[4]
CHECKPOINT = ROOT / "default_model" / "shapes-vl"
GIB = 2**30


def footprint(free_bytes: int) -> Footprint:
    """1,000 bytes of weights, 10 a token and 100 a row of cache; the rest is nothing."""
    return Footprint(
        device="Host",
        precision="fp32",
        weights_bytes=1000,
        cache=CacheSize(token_bytes=10, row_bytes=100, formula=""),
        activations=Activations(
            hidden_size=0, intermediate_size=0, vocab_size=0, score_heads=0, item_bytes=4
        ),
        fixed_bytes=50,
        chunk=1,
        free_bytes=free_bytes,
    )


def test_keys_and_values_of_a_token_are_two_vectors_per_head_and_layer() -> None:
    # Qwen2.5-VL-3B in bf16: 36 layers, 2 heads of 128 numbers of 2 bytes.
    assert cache_token_bytes(36, 2, 128, 2) == 36_864


def test_the_default_models_cache_is_what_kv_cache_allocates() -> None:
    model = read_model(str(CHECKPOINT), ROOT)
    host = host_footprint(model, GIB)
    graphs = family_graphs(str(model.config["model_type"]))(model.config)
    for rows, capacity in ((1, 2048), (16, 2048), (3, 100)):
        limits = BuildLimits(max_model_len=capacity, max_images=DEFAULT_MAX_IMAGES)
        _, spec = graphs.decoder(Precision.for_cpu("fp32"), limits)
        assert KVCache(spec, rows).num_bytes == host.cache_bytes(rows, capacity)
    assert host.cache.formula == "4 layers x 2 x 2 KV heads x 64 x 4 B"
    assert host.cache.token_bytes == cache_token_bytes(4, 2, 64, 4)


def test_a_built_models_cache_and_weights_are_those_on_disk(tmp_path, report) -> None:
    # Without the comparison with a reference: no torch, and `doctor` does not ask for it.
    options = BuildOptions(model=str(CHECKPOINT), output=tmp_path, skip_verify=True)
    manifest = build(options, report)[0].manifest
    model = read_model(manifest.name, tmp_path)
    host = host_footprint(model, GIB)
    assert model.limits == (manifest.max_seqs, manifest.max_model_len)
    cache = KVCache(manifest.decoder.spec, manifest.max_seqs)
    assert host.cache_bytes(*model.limits) == cache.num_bytes
    folders = (tmp_path / f"{manifest.name}-{stage}" / "1" for stage in ("encoder", "decoder"))
    graphs = [path for folder in folders for path in folder.iterdir() if path.suffix != ".py"]
    assert host.weights_bytes == sum(path.stat().st_size for path in graphs)


@pytest.mark.parametrize(
    "name", {shape.model_type: shape.name for shape in SHAPES.values()}.values()
)
def test_every_familys_cache_is_counted_as_it_is_allocated(name, tiny_models) -> None:
    model = read_model(str(tiny_models(name).checkpoint), ROOT)
    rows, capacity = model.limits
    graphs = family_graphs(str(model.config["model_type"]))(model.config)
    limits = BuildLimits(max_model_len=capacity, max_images=DEFAULT_MAX_IMAGES)
    _, spec = graphs.decoder(Precision.for_cpu("fp32"), limits)
    host = host_footprint(model, GIB)
    assert host.cache_bytes(rows, capacity) == KVCache(spec, rows).num_bytes
    assert host.total_bytes(rows, capacity) > host.cache_bytes(rows, capacity)


def test_layers_with_a_window_keep_the_whole_context(tiny_models) -> None:
    name = next(shape.name for shape in SHAPES.values() if shape.model_type == "gemma3")
    model = read_model(str(tiny_models(name).checkpoint), ROOT)
    text = model.config["text_config"]
    assert 0 < model.num_sliding_layers < text["num_hidden_layers"]
    heads, head_dim = text["num_key_value_heads"], text["head_dim"]
    whole = cache_token_bytes(text["num_hidden_layers"], heads, head_dim, 4)
    assert host_footprint(model, GIB).cache.token_bytes == whole


def test_a_gpu_takes_half_the_cache_and_the_checkpoints_own_bytes() -> None:
    model = read_model(str(CHECKPOINT / "config.json"), ROOT)
    gpu = Gpu(
        name="A",
        compute_capability=(8, 9),
        memory_bytes=24 * GIB,
        free_bytes=23 * GIB,
        driver="1",
    )
    on_gpu = gpu_footprint(model, 0, gpu, host_free_bytes=GIB)
    assert on_gpu.cache.token_bytes * 2 == host_footprint(model, GIB).cache.token_bytes
    assert on_gpu.weights_bytes == pytest.approx(Checkpoint(CHECKPOINT).num_bytes, rel=0.01)
    assert on_gpu.free_bytes == 23 * GIB


def test_a_quantized_checkpoint_is_counted_as_it_is_served(tiny_models, tmp_path) -> None:
    plain = tiny_models(TIED.name).checkpoint
    packed, _ = pack_checkpoint(plain, tmp_path, PACKINGS["gptq"])
    linears = TIED.num_layers * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 96)
    before, after = (host_footprint(read_model(str(c), ROOT), GIB) for c in (plain, packed))
    # 32 bits less 4, and a scale of 32 bits for 32 of them.
    assert before.weights_bytes - after.weights_bytes == linears * (32 - 4 - 1) // 8


def test_a_quantized_checkpoint_that_is_not_read_is_refused(tmp_path) -> None:
    config = {**TIED.config, "quantization_config": {"quant_method": "awq", "version": "gemv"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LaunchError, match="gemv layout"):
        read_model(str(tmp_path), ROOT)


def test_a_cache_that_does_not_grow_with_the_context_is_counted_per_row() -> None:
    names = ("past_key.0", "past_value.0", "past_cross_key.0")
    shapes = (("B", 2, 256, 8), ("B", 2, 256, 8), ("B", 2, 100, 8))
    spec = GraphSpec(
        name="decoder",
        inputs=tuple(
            TensorSpec(name, "float32", shape) for name, shape in zip(names, shapes, strict=True)
        ),
        outputs=(),
        aliases={name.replace("past", "present"): name for name in names},
    )
    size = cache_size(spec, 256)
    assert (size.token_bytes, size.row_bytes) == (2 * 2 * 8 * 4, 2 * 100 * 8 * 4)
    assert KVCache(spec, 3).num_bytes == 3 * (256 * size.token_bytes + size.row_bytes)


def test_the_total_is_the_sum_of_its_parts() -> None:
    sizes = footprint(0)
    assert sizes.cache_bytes(3, 20) == 3 * (20 * 10 + 100)
    assert sizes.total_bytes(3, 20) == 1000 + 900 + 50


def test_activations_are_those_of_the_larger_step() -> None:
    activations = Activations(
        hidden_size=8, intermediate_size=16, vocab_size=100, score_heads=2, item_bytes=4
    )
    per_token = (4 * 8 + 2 * 16) * 4
    prefill = 32 * per_token + 2 * 32 * 64 * 4 + 1 * 100 * 4
    assert activations.num_bytes(1, 64, chunk=32) == prefill
    decode = 40 * per_token + 2 * 40 * 64 * 4 + 40 * 100 * 4
    assert activations.num_bytes(40, 64, chunk=32) == decode


@pytest.mark.parametrize(("rows", "short_by"), [(1, 1), (7, 0), (7, 1), (64, 0)])
def test_the_most_sequences_are_found_to_the_byte(rows: int, short_by: int) -> None:
    sizes = footprint(footprint(0).total_bytes(rows, 20) - short_by)
    assert sizes.most_seqs(20) == rows - short_by


def test_the_table_says_what_fits() -> None:
    sizes = footprint(footprint(0).total_bytes(8, 2048))
    cells = {
        (cell.max_seqs, cell.max_model_len): cell
        for row in table(sizes, [1024, 2048])
        for cell in row
    }
    assert cells[8, 2048].fits
    assert cells[8, 2048].total_bytes == sizes.free_bytes
    assert not cells[16, 2048].fits
    assert cells[8, 1024].fits


def test_the_tables_columns_end_at_the_models_own_limit() -> None:
    assert lengths_up_to(2048, None) == [1024, 2048]
    assert lengths_up_to(3000, None) == [1024, 2048, 3000]
    assert lengths_up_to(128_000, 512)[:2] == [512, 1024]
    assert lengths_up_to(128_000, None)[-1] == 32768
