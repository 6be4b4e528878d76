"""The model.py files of a built repository, driven as Triton drives them."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils

from python_backend import tensor_names as names
from python_backend.errors import (
    EngineError,
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    RequestCancelledError,
    from_wire,
)
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM, split_images
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.gemma import GEMMA3_TEXT
from tests.tiny.pictures import png

TIMEOUT_S = 5.0
EMPTY: Mapping[str, str] = MappingProxyType({})
TENSOR = re.compile(r'name: "(\w+)", data_type')
PARAMETER = re.compile(r'parameters \{ key: "(\w+)", value \{ string_value: "([^"]*)" \} \}')
GREEDY = {"temperature": 0, "max_tokens": 10, "ignore_eos": True}
LONG = {"temperature": 0, "max_tokens": 400, "ignore_eos": True}


def load_stage(
    repository: Path, model: str, parameters: Mapping[str, str] = EMPTY, name: str | None = None
):
    """`TritonPythonModel` of a model folder, initialized with its config.pbtxt; `name` is not its own."""
    path = repository / model / "1" / "model.py"
    module_spec = importlib.util.spec_from_file_location(f"model_{model}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    found = dict(PARAMETER.findall((repository / model / "config.pbtxt").read_text()))
    config = {"parameters": {k: {"string_value": v} for k, v in {**found, **parameters}.items()}}
    stage = module.TritonPythonModel()
    args = {"model_name": name or model, "model_repository": str(repository / model)}
    stage.initialize({**args, "model_config": json.dumps(config)})
    return stage


class Ensemble:
    """The three stages in a row."""

    def __init__(
        self, repository: Path, name: str, alias: str | None = None, **decoder_parameters: str
    ) -> None:
        encoder, decoder = (
            alias and alias + s for s in (names.ENCODER_SUFFIX, names.DECODER_SUFFIX)
        )
        self.preprocess = load_stage(repository, name + names.PREPROCESS_SUFFIX)
        self.encoder = load_stage(repository, name + names.ENCODER_SUFFIX, name=encoder)
        self.decoder = load_stage(
            repository, name + names.DECODER_SUFFIX, decoder_parameters, name=decoder
        )
        self._inputs = {
            suffix: _declared_inputs(repository / (name + suffix))
            for suffix in (names.ENCODER_SUFFIX, names.DECODER_SUFFIX)
        }

    def prepare(self, conversation) -> pb_utils.InferenceResponse:
        messages, images = split_images(conversation)
        return self.prepare_raw({"messages": messages}, images)

    def prepare_raw(self, prompt, images) -> pb_utils.InferenceResponse:
        text = prompt if isinstance(prompt, str) else json.dumps(prompt)
        tensors = {
            names.PROMPT: np.array([text.encode()], object),
            names.IMAGES: np.array([*images, b""], object)[: len(images)],
        }
        (response,) = self.preprocess.execute([pb_utils.InferenceRequest(tensors)])
        return response

    def encode(self, prepared) -> list[pb_utils.InferenceResponse]:
        inputs = self._inputs[names.ENCODER_SUFFIX]
        requests = [
            pb_utils.InferenceRequest({name: response.arrays()[name] for name in inputs})
            for response in prepared
        ]
        return self.encoder.execute(requests)

    def decode(self, prepared, embeds, sampling, request_id="") -> pb_utils.InferenceRequest:
        """The request, already executing."""
        arrays = prepared.arrays()
        inputs = self._inputs[names.DECODER_SUFFIX]
        tensors = {name: arrays[name] for name in inputs if name in arrays}
        tensors |= {tensor.name(): tensor for tensor in embeds.output_tensors()}
        text = sampling if isinstance(sampling, str) else json.dumps(sampling)
        tensors[names.SAMPLING] = np.array([text.encode()], object)
        request = pb_utils.InferenceRequest(tensors, request_id, decoupled=True)
        assert self.decoder.execute([request]) is None
        return request

    def start(self, conversation, sampling, request_id="") -> pb_utils.InferenceRequest:
        prepared = self.prepare(conversation)
        (embeds,) = self.encode([prepared])
        return self.decode(prepared, embeds, sampling, request_id)

    def cancel(self, request_id: str) -> pb_utils.InferenceRequest:
        tensors = {names.CANCEL: np.array([request_id.encode()], object)}
        request = pb_utils.InferenceRequest(tensors, decoupled=True)
        self.decoder.execute([request])
        return request


def _declared_inputs(folder: Path) -> list[str]:
    """Names of the inputs in a model's config.pbtxt."""
    return TENSOR.findall((folder / "config.pbtxt").read_text().split("output [")[0])


def details(request) -> list[dict]:
    """All details of a finished request that had exactly one final response."""
    assert request.sender.finished.wait(TIMEOUT_S)
    assert request.sender.num_finals == 1
    arrays = [response.arrays() for response in request.sender.responses]
    assert all(a[names.TEXT].shape == a[names.DETAILS].shape == (1,) for a in arrays)
    return [{**json.loads(a[names.DETAILS][0]), "text": a[names.TEXT][0].decode()} for a in arrays]


def error(response):
    """The error that a proxy reads from a response."""
    assert response.has_error()
    return from_wire(response.error().message())


def final_error(request):
    assert request.sender.finished.wait(TIMEOUT_S)
    assert request.sender.num_finals == 1
    return error(request.sender.responses[-1])


@pytest.fixture(scope="module")
def ensemble(tied):
    model = tied.model
    stages = Ensemble(tied.repository, model.manifest.name)
    yield stages
    stages.decoder.finalize()
    stages.encoder.finalize()


@pytest.fixture
def small(tied):
    """One slot, one waiting request."""
    stages = Ensemble(tied.repository, tied.model.manifest.name, max_num_seqs="1", max_waiting="1")
    yield stages
    stages.decoder.finalize()
    stages.encoder.finalize()


# --- what they answer ------------------------------------------------------------------------------


def test_stages_answer_what_the_offline_engine_answers(ensemble, tied):
    _check_answers(ensemble, tied)


def test_stages_of_a_decoder_with_cross_attention_answer_so_too(tiny_models):
    mllama = tiny_models("tiny-mllama")
    stages = Ensemble(mllama.model.folder.parent, mllama.model.manifest.name)
    _check_answers(stages, mllama)
    stages.decoder.finalize()
    stages.encoder.finalize()


def _check_answers(ensemble, tiny):
    with VLM(tiny.model.folder) as vlm:
        expected = vlm.generate(list(CONVERSATIONS.values()), SamplingParams(**GREEDY))
    prepared = [ensemble.prepare(conversation) for conversation in CONVERSATIONS.values()]
    embeds = ensemble.encode(prepared)  # all of them in one call, as the dynamic batcher does
    requests = [
        ensemble.decode(p, e, GREEDY, f"r{i}")
        for i, (p, e) in enumerate(zip(prepared, embeds, strict=True))
    ]
    for request, generation in zip(requests, expected, strict=True):
        parts = details(request)
        assert [token for part in parts for token in part["token_ids"]] == generation.token_ids
        assert "".join(part["text"] for part in parts) == generation.text
        assert parts[-1]["finish_reason"] == "length"
        usage = generation.choices[0].usage
        assert parts[-1]["usage"]["prompt_tokens"] == usage.prompt_tokens
        assert parts[-1]["usage"]["image_tokens"] == usage.image_tokens
        assert all(set(part) - {"text"} <= set(names.DETAILS_KEYS) for part in parts)


def test_request_without_images_is_an_ordinary_one(ensemble):
    prepared = ensemble.prepare(CONVERSATIONS["text"])
    arrays = prepared.arrays()
    assert arrays["pixel_values"].shape[:2] == (1, 0)
    assert arrays["image_grid_thw"].shape == (1, 0, 3)
    assert arrays[names.IMAGE_HASHES].shape == (1, 0)
    (embeds,) = ensemble.encode([prepared])
    assert embeds.arrays()[names.IMAGE_EMBEDS].shape == (1, 0, 128)
    assert len(details(ensemble.decode(prepared, embeds, GREEDY))) >= 1


def test_tensors_have_the_types_that_config_pbtxt_declares(ensemble, tied):
    prepared = ensemble.prepare(CONVERSATIONS["three"])
    (embeds,) = ensemble.encode([prepared])
    arrays = prepared.arrays() | embeds.arrays()
    types = {"TYPE_FP32": "float32", "TYPE_INT64": "int64", "TYPE_STRING": "object"}
    name, row = (
        tied.model.manifest.name,
        re.compile(r'name: "(\w+)", data_type: (\w+), dims: \[(.*?)\]'),
    )
    for suffix in (names.PREPROCESS_SUFFIX, names.ENCODER_SUFFIX):
        config = (tied.repository / (name + suffix) / "config.pbtxt").read_text()
        for tensor, kind, dims in row.findall(config.split("output [")[1]):
            declared = [int(dim) for dim in dims.split(",")]
            shape = arrays[tensor].shape
            if suffix == names.ENCODER_SUFFIX:
                shape = shape[1:]  # Triton's batch axis is not declared
            assert arrays[tensor].dtype == types[kind]
            assert len(shape) == len(declared)
            assert all(d in (-1, size) for d, size in zip(declared, shape, strict=True))


def test_choices_share_one_stream_with_one_final_response(ensemble):
    request = ensemble.start(CONVERSATIONS["wide"], {**GREEDY, "n": 3, "max_tokens": 4})
    parts = details(request)
    for index in range(3):
        mine = [part for part in parts if part["index"] == index]
        assert sum(len(part["token_ids"]) for part in mine) == 4
        assert mine[-1]["finish_reason"] == "length"
        assert all("finish_reason" not in part for part in mine[:-1])


def test_what_sampling_leaves_open_comes_from_the_generation_config(ensemble):
    """The tiny checkpoints say do_sample = false."""
    open_, greedy = ({"max_tokens": 6}, {"max_tokens": 6, "temperature": 0})
    tokens = [
        [t for part in details(ensemble.start(CONVERSATIONS["tall"], s)) for t in part["token_ids"]]
        for s in (open_, greedy)
    ]
    assert tokens[0] == tokens[1]


def test_stages_of_a_text_only_model_do_without_an_encoder(tiny_models):
    model = tiny_models(GEMMA3_TEXT[0].name).model
    repository, name = model.folder.parent, model.manifest.name
    with VLM(model.folder) as vlm:
        (expected,) = vlm.generate([CONVERSATIONS["turns"]], SamplingParams(**GREEDY))
    preprocess = load_stage(repository, name + names.PREPROCESS_SUFFIX)
    decoder = load_stage(repository, name + names.DECODER_SUFFIX)
    prompt = np.array([json.dumps({"messages": CONVERSATIONS["turns"]}).encode()], object)
    tensors = {names.PROMPT: prompt, names.IMAGES: np.array([], object)}
    (prepared,) = preprocess.execute([pb_utils.InferenceRequest(tensors)])
    declared = (repository / (name + names.PREPROCESS_SUFFIX) / "config.pbtxt").read_text()
    assert all(f'name: "{tensor}"' in declared for tensor in prepared.arrays())
    taken = _declared_inputs(repository / (name + names.DECODER_SUFFIX))
    inputs = {tensor: array for tensor, array in prepared.arrays().items() if tensor in taken}
    inputs[names.SAMPLING] = np.array([json.dumps(GREEDY).encode()], object)
    request = pb_utils.InferenceRequest(inputs, decoupled=True)
    decoder.execute([request])
    generated = [token for part in details(request) for token in part["token_ids"]]
    assert generated == expected.token_ids
    decoder.finalize()


# --- what they refuse ------------------------------------------------------------------------------

TEXT_MESSAGE = {"role": "user", "content": "Hi"}
IMAGE_MESSAGE = {"role": "user", "content": [{"type": "image"}]}


@pytest.mark.parametrize(
    ("prompt", "images", "kind"),
    [
        ("{not json", [], InvalidRequestError),
        ("[]", [], InvalidRequestError),
        ({"messages": []}, [], InvalidRequestError),
        ({"messages": [TEXT_MESSAGE]}, [png(30, 30)], InvalidRequestError),
        ({"messages": [IMAGE_MESSAGE]}, [], InvalidRequestError),
        ({"messages": [IMAGE_MESSAGE]}, [b"not a picture"], InvalidImageError),
        ({"messages": [IMAGE_MESSAGE]}, [png(30, 30)[:60]], InvalidImageError),
        ({"messages": [IMAGE_MESSAGE]}, [b""], InvalidImageError),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, [], PromptTooLongError),
    ],
)
def test_bad_prompt_is_an_error_of_its_own_response(ensemble, prompt, images, kind):
    response = ensemble.prepare_raw(prompt, images)
    assert type(error(response)) is kind
    assert response.error().code() == pb_utils.TritonError.INVALID_ARG


def test_bad_pixels_do_not_spoil_the_requests_encoded_with_them(ensemble):
    good = ensemble.prepare(CONVERSATIONS["wide"])
    arrays = ensemble.prepare(CONVERSATIONS["tall"]).arrays()
    arrays["pixel_values"] = arrays["pixel_values"][:, :-4]
    arrays[names.IMAGE_HASHES] = np.array([[b"not seen before"]], object)
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(a)) for name, a in arrays.items()]
    bad = pb_utils.InferenceResponse(tensors)
    alone = ensemble.encode([good])[0].arrays()[names.IMAGE_EMBEDS]
    first, second = ensemble.encode([bad, good])
    assert isinstance(error(first), EngineError)
    np.testing.assert_array_equal(second.arrays()[names.IMAGE_EMBEDS], alone)


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ("{bad", names.SAMPLING),
        ("[1]", names.SAMPLING),
        ('"text"', names.SAMPLING),
        ({"temperature": -1}, "temperature"),
        ({"no_such": 1}, "no_such"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"n": 100}, "n"),
    ],
)
def test_bad_sampling_is_a_final_error(ensemble, sampling, param):
    found = final_error(ensemble.start(CONVERSATIONS["text"], sampling))
    assert type(found) is InvalidRequestError
    assert found.param == param


def test_missing_tensor_is_a_final_error(ensemble):
    request = pb_utils.InferenceRequest({}, decoupled=True)
    ensemble.decoder.execute([request])
    assert isinstance(final_error(request), InvalidRequestError)


def test_embeddings_of_another_prompt_are_a_final_error(ensemble):
    (embeds,) = ensemble.encode([ensemble.prepare(CONVERSATIONS["wide"])])
    request = ensemble.decode(ensemble.prepare(CONVERSATIONS["tall"]), embeds, GREEDY)
    assert final_error(request).param == names.IMAGE_EMBEDS


# --- coming and going ------------------------------------------------------------------------------


def test_cancel_ends_the_request_and_says_that_it_was_there(small):
    request = small.start(CONVERSATIONS["text"], LONG, "r1")
    assert request.sender.first.wait(TIMEOUT_S)
    assert details(small.cancel("r1"))[-1]["cancelled"] is True
    assert isinstance(final_error(request), RequestCancelledError)
    code = request.sender.responses[-1].error().code()
    assert code == pb_utils.TritonError.CANCELLED
    assert details(small.cancel("r1"))[-1]["cancelled"] is False
    assert details(small.start(CONVERSATIONS["text"], GREEDY, "r2"))


def test_client_that_leaves_ends_its_request(small):
    request = small.start(CONVERSATIONS["text"], LONG, "r1")
    request.sender.cancelled.set()
    assert isinstance(final_error(request), RequestCancelledError)


def test_full_queue_is_a_final_error(small):
    prepared = small.prepare(CONVERSATIONS["text"])
    (embeds,) = small.encode([prepared])
    requests = [small.decode(prepared, embeds, LONG, f"r{i}") for i in range(6)]
    for request in requests:
        small.cancel(request.request_id())
    for request in requests:
        assert request.sender.finished.wait(TIMEOUT_S)
        assert request.sender.num_finals == 1
    errors = [error(r.sender.responses[-1]) for r in requests if len(r.sender.responses) == 1]
    overloaded = [e for e in errors if isinstance(e, OverloadedError)]
    assert len(overloaded) >= 1


def test_requests_without_an_id_do_not_disturb_each_other(ensemble):
    requests = [ensemble.start(CONVERSATIONS["text"], GREEDY) for _ in range(3)]
    usages = [details(request)[-1]["usage"] for request in requests]
    cached = [usage.pop("cached_tokens") for usage in usages]
    for usage in usages:  # how many tokens are guessed depends on who else runs
        del usage["draft_tokens"], usage["accepted_draft_tokens"]
    assert usages == [usages[0]] * 3
    assert cached[1] == cached[2] == usages[0]["prompt_tokens"] - 1


def test_prompt_and_pictures_of_an_earlier_request_are_not_computed_again(ensemble):
    """Unless its salt is another."""
    salts = ["x", "y", "x"]
    parts = [
        details(ensemble.start(CONVERSATIONS["three"], {**GREEDY, "cache_salt": salt}))
        for salt in salts
    ]
    usage = parts[0][-1]["usage"]
    assert [p[-1]["usage"]["cached_tokens"] for p in parts] == [0, 0, usage["prompt_tokens"] - 1]
    tokens = [[token for part in p for token in part["token_ids"]] for p in parts]
    assert tokens[0] == tokens[1] == tokens[2]


def test_stages_publish_what_they_count(tied):
    name = "counted"  # other stages of this model may be publishing under its own
    stages = Ensemble(tied.repository, tied.model.manifest.name, name)
    for _ in range(2):
        tokens = details(stages.start(CONVERSATIONS["wide"], GREEDY))
    for stage in (stages.decoder, stages.encoder):
        stage.finalize()  # the thread that publishes ends
        stage._metrics.publish()
    encoder, decoder = f"{name}{names.ENCODER_SUFFIX}", f"{name}{names.DECODER_SUFFIX}"
    assert pb_utils.metric("triton_vlm_image_cache_misses_total", model=encoder) == 1
    assert pb_utils.metric("triton_vlm_image_cache_hits_total", model=encoder) == 1
    assert pb_utils.metric("triton_vlm_image_cache_bytes", model=encoder) > 0
    usage = tokens[-1]["usage"]
    computed = pb_utils.metric(
        "triton_vlm_decoder_step_tokens_total", model=decoder, kind="prefill"
    )
    assert computed == usage["prompt_tokens"] + 1  # all but the last were there the second time
    rows = pb_utils.metric("triton_vlm_decoder_step_tokens_total", model=decoder, kind="decode")
    # The first token comes with the prompt, and a guess that was right with the one before.
    assert rows == 2 * (usage["completion_tokens"] - 1 - usage["accepted_draft_tokens"])
    steps = pb_utils.metric("triton_vlm_decoder_steps_total", model=decoder, kind="decode")
    assert steps == rows  # one request at a time
    seconds = pb_utils.metric("triton_vlm_decoder_step_seconds_total", model=decoder, kind="decode")
    assert seconds > 0
    for gauge in ("triton_vlm_decoder_waiting", "triton_vlm_decoder_rows"):
        assert pb_utils.metric(gauge, model=decoder) == 0


@pytest.mark.parametrize(
    "lengths", [np.array([1, 1]), np.array([1.0]), np.array([1]), np.zeros((1, 1), np.int64)]
)
def test_lengths_of_images_that_do_not_fit_are_refused(ensemble, lengths):
    prepared = ensemble.prepare(CONVERSATIONS["wide"])
    (embeds,) = ensemble.encode([prepared])
    arrays = {**prepared.arrays(), names.IMAGE_LENGTHS: lengths}
    prepared = pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in arrays.items()]
    )
    error = final_error(ensemble.decode(prepared, embeds, GREEDY))
    assert isinstance(error, InvalidRequestError)
    assert error.param == names.IMAGE_LENGTHS


def test_finalize_finishes_what_runs(tied):
    stages = Ensemble(tied.repository, tied.model.manifest.name)
    requests = [stages.start(CONVERSATIONS["text"], GREEDY, str(i)) for i in range(3)]
    stages.decoder.finalize()
    for request in requests:
        assert details(request)[-1]["finish_reason"] == "length"


def detokenize(ensemble, token_ids):
    tensors = {names.PROMPT_TOKEN_IDS: np.array(token_ids, np.int64)}
    request = pb_utils.InferenceRequest(tensors, decoupled=True)
    ensemble.decoder.execute([request])
    return request


def test_token_ids_alone_are_answered_with_their_text(ensemble):
    text = "<|im_start|>Größe 🚕<|im_end|>"
    response = ensemble.prepare_raw({"prompt": text}, [])
    token_ids = response.arrays()[names.PROMPT_TOKEN_IDS]
    (part,) = details(detokenize(ensemble, token_ids))
    assert part == {"text": text}


@pytest.mark.parametrize("token_ids", [[1, 10**6], [-1], [2**40]])
def test_unknown_token_ids_have_no_text(ensemble, token_ids):
    found = final_error(detokenize(ensemble, token_ids))
    assert type(found) is InvalidRequestError
    assert found.param == names.PROMPT_TOKEN_IDS


@pytest.mark.parametrize("items", [[], [b"a", b"b"], [b"\xff"]])
def test_malformed_cancel_is_a_final_error(ensemble, items):
    tensors = {names.CANCEL: np.array([*items, b""], object)[: len(items)]}
    request = pb_utils.InferenceRequest(tensors, decoupled=True)
    ensemble.decoder.execute([request])
    assert final_error(request).param == names.CANCEL


def test_model_that_is_not_there_does_not_load(tied):
    name = tied.model.manifest.name + names.DECODER_SUFFIX
    with pytest.raises(pb_utils.TritonModelException, match="holds no built model"):
        load_stage(tied.repository, name, {"model": "nothing"})
