"""Which models Triton serves, remembered for a few seconds."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2

from openai_frontend.backend import ModelInfo
from openai_frontend.triton_errors import to_vlm_error
from python_backend.tensor_names import (
    PARAM_MAX_IMAGES,
    PARAM_MAX_MODEL_LEN,
    PARAM_REASONS,
    PARAM_SERVED_NAME,
    PARAM_TAKES_VIDEOS,
    PARAM_TOOL_FORMAT,
)
from python_backend.tool_calls import FORMATS

_TIMEOUT_S = 5.0
# An unknown name is looked up again, but no more often than this, whatever clients ask for.
_MIN_REFRESH_INTERVAL_S = 1.0


class ModelDirectory:
    """The models of a Triton server that have a public name.

    Every model of the repository whose configuration has the parameter `served_model_name` can be
    asked for; that leaves out the stages of the ensembles.
    """

    def __init__(self, stub: Callable[[], Any], ttl_s: float, clock: Callable[[], float]) -> None:
        self._stub = stub
        self._ttl_s = ttl_s
        self._clock = clock
        self._models: list[ModelInfo] = []
        self._created: dict[str, int] = {}
        self._refreshed_at: float | None = None
        self._lock = asyncio.Lock()

    async def models(self) -> list[ModelInfo]:
        """All models, sorted by id.

        Raises:
            VlmError: Triton cannot be asked.
        """
        await self._refresh(self._ttl_s)
        return self._models

    async def find(self, name: str) -> ModelInfo | None:
        """The model with the public id or, failing that, the Triton name `name`.

        Raises:
            VlmError: Triton cannot be asked.
        """
        for max_age_s in (self._ttl_s, min(self._ttl_s, _MIN_REFRESH_INTERVAL_S)):
            await self._refresh(max_age_s)
            for key in ("id", "triton_name"):
                for model in self._models:
                    if getattr(model, key) == name:
                        return model
        return None

    async def _refresh(self, max_age_s: float) -> None:
        # One question to Triton answers all requests that wait for it.
        async with self._lock:
            now = self._clock()
            if self._refreshed_at is not None and now - self._refreshed_at < max_age_s:
                return
            try:
                self._models = await self._read()
            except grpc.aio.AioRpcError as error:
                raise to_vlm_error(error.code(), error.details()) from error
            self._refreshed_at = now

    async def _read(self) -> list[ModelInfo]:
        index = await self._stub().RepositoryIndex(
            service_pb2.RepositoryIndexRequest(ready=True), timeout=_TIMEOUT_S
        )
        replies = await asyncio.gather(
            *(
                self._stub().ModelConfig(
                    service_pb2.ModelConfigRequest(name=name), timeout=_TIMEOUT_S
                )
                for name in sorted({model.name for model in index.models})
            )
        )
        models = [self._info(reply.config) for reply in replies]
        return sorted((model for model in models if model is not None), key=lambda m: m.id)

    def _info(self, config: model_config_pb2.ModelConfig) -> ModelInfo | None:
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        served_name = parameters.get(PARAM_SERVED_NAME)
        if not served_name:
            return None
        digest = hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest()
        return ModelInfo(
            id=served_name,
            triton_name=config.name,
            created=self._created.setdefault(served_name, int(time.time())),
            fingerprint=f"fp_{digest[:10]}",
            max_model_len=_int_or_none(parameters.get(PARAM_MAX_MODEL_LEN)),
            max_images=_int_or_none(parameters.get(PARAM_MAX_IMAGES)),
            tool_format=FORMATS.get(parameters.get(PARAM_TOOL_FORMAT, "")),
            reasons=parameters.get(PARAM_REASONS) == "true",
            takes_videos=parameters.get(PARAM_TAKES_VIDEOS) == "true",
        )


def _int_or_none(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
