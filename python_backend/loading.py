"""From a model folder to the objects that serve it: used by the Triton stages and by the offline engine."""

from __future__ import annotations

from tokenizers import Tokenizer

from python_backend.config import EngineConfig
from python_backend.encoder_cache import EncoderCache
from python_backend.engine import Engine
from python_backend.families import load_family
from python_backend.families.base import ModelFamily
from python_backend.gpu import current_gpu
from python_backend.manifest import GraphFile, ModelFolder
from python_backend.model_runner import ModelRunner
from python_backend.reasoning import ReasoningTokens
from python_backend.runtimes.base import EngineRuntime
from python_backend.runtimes.ort import OrtRuntime
from python_backend.scheduler import Scheduler
from python_backend.structured_output import GrammarCompiler
from python_backend.token_text import TokenText
from python_backend.turns import Turns
from python_backend.vision_encoder import VisionEncoder

_MAX_KEPT_PIXEL_BYTES = 8 * 2**20
"""Pixels that an encoder computes in memory that it keeps: 1,700 patches of Qwen2.5-VL, in some 300 MB.
Fresh pages, which the kernel clears, cost a tenth of a call; but larger pictures take gigabytes."""


def load_runtime(
    model: ModelFolder,
    graph: GraphFile,
    config: EngineConfig,
    *,
    max_kept_bytes: int | None = None,
) -> EngineRuntime:
    """A graph of `model` in the engine it was built for.

    Args:
        model: has it.
        graph: to load.
        config: how to run it.
        max_kept_bytes: see `OrtRuntime`.

    Raises:
        BundleError: this machine does not have what the engine needs, or the file is not what it should be.
    """
    engine = model.manifest.engine
    if engine != "onnxruntime":
        # Imported here: a machine without a GPU has neither TensorRT nor CuPy.
        from python_backend.runtimes.tensorrt import TensorRtRuntime

        return TensorRtRuntime(
            graph.spec,
            model.path(graph, current_gpu()),
            engine=engine,
            max_graphs=config.max_cuda_graphs,
        )
    return OrtRuntime(
        graph.spec,
        model.path(graph),
        num_threads=config.num_threads,
        max_kept_bytes=max_kept_bytes,
        # Stages with fewer threads than cores were given cores of their own.
        turns=None if config.num_threads else Turns(str(model.folder.resolve())),
    )


def load_vision_encoder(
    model: ModelFolder, family: ModelFamily, config: EngineConfig
) -> VisionEncoder:
    """The encoder stage of `model`, which must have one."""
    graph = model.manifest.vision_encoder
    assert graph is not None
    runtime = load_runtime(model, graph, config, max_kept_bytes=_MAX_KEPT_PIXEL_BYTES)
    cache = EncoderCache(config.encoder_cache_bytes)
    return VisionEncoder(family, runtime, cache, config.max_encoder_patches)


def load_cross_attention(model: ModelFolder, config: EngineConfig) -> EngineRuntime | None:
    """The graph that fills what the decoder's cross-attention layers read, if `model` has one."""
    graph = model.manifest.cross_attention
    # It runs once per request with images: its memory is not worth keeping.
    return None if graph is None else load_runtime(model, graph, config, max_kept_bytes=0)


def load_engine(model: ModelFolder, config: EngineConfig) -> Engine:
    """The decoder stage of `model`."""
    manifest = model.manifest
    num_rows = min(config.max_num_seqs, manifest.max_seqs)
    scheduler = Scheduler(
        max_num_seqs=num_rows,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=manifest.max_model_len,
        max_waiting=config.max_waiting,
    )
    runner = ModelRunner(
        load_runtime(model, manifest.decoder, config),
        num_rows,
        load_cross_attention(model, config),
    )
    tokenizer = Tokenizer.from_file(str(model.detokenizer_path))
    return Engine(
        scheduler,
        runner,
        TokenText(tokenizer),
        manifest.eos_token_ids,
        _reasoning_tokens(tokenizer, manifest.reasoning_marks),
        video_token_id=load_family(manifest.config, model.processor_dir).video_token_id,
        prefix_cache=config.prefix_cache,
        max_draft_tokens=config.max_draft_tokens if runner.gives_many_logits else 0,
    )


def _reasoning_tokens(
    tokenizer: Tokenizer, marks: tuple[str, str] | None
) -> ReasoningTokens | None:
    if marks is None:
        return None
    added = tokenizer.get_added_tokens_decoder()
    start_id, end_id = (i for mark in marks for i, token in added.items() if token.content == mark)
    special_ids = frozenset(i for i, token in added.items() if token.special)
    return ReasoningTokens(start_id, end_id, special_ids)


def load_grammars(model: ModelFolder) -> GrammarCompiler:
    """What compiles the grammars of requests to the decoder stage of `model`."""
    path = model.processor_dir / "tokenizer.json"
    vocab_size = int(model.manifest.decoder.spec.output("logits").shape[2])
    return GrammarCompiler(path, vocab_size, model.manifest.eos_token_ids)
