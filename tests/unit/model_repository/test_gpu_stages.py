"""The stages of a model whose engines run on a GPU: embeddings stay there from encoder to decoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils
from fake_cupy import TRANSFERS

from python_backend import tensor_names as names
from python_backend.errors import InvalidRequestError
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.shapes import TIED
from tests.unit.model_repository.test_stages import GREEDY, Ensemble, details, final_error

NUM_TOKENS = GREEDY["max_tokens"]


@pytest.fixture(params=[TIED.name, "tiny-mllama"])
def stages(request, for_gpu):
    folder = for_gpu(request.param).folder
    stages = Ensemble(folder.parent, folder.name)
    yield stages
    stages.decoder.finalize()
    stages.encoder.finalize()


def _embeds(response):
    (tensor,) = response.output_tensors()
    return tensor


def test_answers_equal_the_cpus_and_embeddings_never_leave_the_gpu(stages, tiny_models, request):
    tiny = tiny_models(request.node.callspec.params["stages"])
    with VLM(tiny.model.folder) as vlm:
        expected = vlm.generate([CONVERSATIONS["three"]], SamplingParams(**GREEDY))
    prepared = stages.prepare(CONVERSATIONS["three"])
    for _ in range(2):  # the second time from the encoder's cache
        (embeds,) = stages.encode([prepared])
        assert not _embeds(embeds).is_cpu()
        running = stages.decode(prepared, embeds, GREEDY)
        # Triton's memory is its own again when `execute` has returned.
        _embeds(embeds)._array._memory[...] = np.nan
        tokens = [token for part in details(running) for token in part["token_ids"]]
        assert tokens == list(expected[0].token_ids)
    assert TRANSFERS.to_host == [8] * 2 * NUM_TOKENS


def test_request_without_images_and_embeddings_of_the_host_are_taken_too(stages):
    prepared = stages.prepare(CONVERSATIONS["text"])
    (embeds,) = stages.encode([prepared])
    assert _embeds(embeds).is_cpu()
    assert details(stages.decode(prepared, embeds, GREEDY))[-1]["finish_reason"] == "length"
    prepared = stages.prepare(CONVERSATIONS["wide"])
    (embeds,) = stages.encode([prepared])
    tensor = pb_utils.Tensor(names.IMAGE_EMBEDS, _embeds(embeds)._array._memory)
    on_host = pb_utils.InferenceResponse([tensor])
    answers = [details(stages.decode(prepared, e, GREEDY)) for e in (on_host, embeds)]
    first, second = ([t for part in parts for t in part["token_ids"]] for parts in answers)
    assert first == second


def test_token_ids_in_a_gpus_memory_are_refused(stages):
    prepared = stages.prepare(CONVERSATIONS["wide"])
    (embeds,) = stages.encode([prepared])
    tensors = prepared.arrays()
    tensors = {n: tensors[n] for n in (names.IMAGE_INDEX, names.POSITION_IDS)}
    tensors[names.PROMPT_TOKEN_IDS] = pb_utils.Tensor.from_dlpack(
        names.PROMPT_TOKEN_IDS, _embeds(embeds)._array
    )
    tensors[names.SAMPLING] = np.array([json.dumps(GREEDY).encode()], object)
    request = pb_utils.InferenceRequest(tensors, decoupled=True)
    stages.decoder.execute([request])
    error = final_error(request)
    assert isinstance(error, InvalidRequestError)
    assert error.param == names.PROMPT_TOKEN_IDS
    assert "GPU's memory" in error.message


def test_only_models_for_a_gpu_say_that_inputs_may_lie_there(for_gpu, tied):
    line = 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS", value { string_value: "no" } }'

    def says_so(folder: Path) -> dict[str, bool]:
        configs = folder.parent.glob("*/config.pbtxt")
        return {
            path.parent.name.removeprefix(folder.name): line in path.read_text() for path in configs
        }

    cpu, gpu = says_so(tied.model.folder), says_so(for_gpu(TIED.name).folder)
    assert not any(cpu.values())
    assert {suffix for suffix, said in gpu.items() if said} == {names.DECODER_SUFFIX}
