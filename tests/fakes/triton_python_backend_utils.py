"""What Triton's Python stub gives a model.py, recording what the model sends.

Signatures and error codes as in `triton_python_backend_utils.py` and `pb_stub.cc` of Triton 24.10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

unloaded_models: list[str] = []
"""What `unload_model` was called with."""
metric_values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
"""Every custom metric, by its family's name and its sorted labels."""


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """Raised by a model that cannot be loaded."""


class TritonError:
    """An error in a response."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED = range(6)
    ALREADY_EXISTS, CANCELLED = 6, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A named array. Triton takes contiguous arrays only, and bytes only as objects."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray)
        assert array.dtype.kind not in "SU"
        self._set(name, array)

    def _set(self, name: str, array: Any) -> None:
        assert array.flags.c_contiguous
        self._name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name: str, tensor: Any) -> Tensor:
        """Of an array on a device, which stays there."""
        assert tensor.__dlpack_device__()[0] != 1, "an array of the host"
        self = cls.__new__(cls)
        self._set(name, tensor)
        return self

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return isinstance(self._array, np.ndarray)

    def as_numpy(self) -> np.ndarray:
        assert self.is_cpu(), "Tensor is stored in GPU and cannot be converted to NumPy."
        return self._array

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self._array.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class Metric:
    """One series; families refuse what does not go with their kind, as Triton does."""

    def __init__(self, family: MetricFamily, labels: Mapping[str, str]) -> None:
        self._family, self._key = family, (family.name, tuple(sorted(labels.items())))
        metric_values[self._key] = 0.0

    def increment(self, value: float) -> None:
        assert value >= 0 or self._family.kind == MetricFamily.GAUGE, "a counter only goes up"
        metric_values[self._key] += value

    def set(self, value: float) -> None:
        assert self._family.kind == MetricFamily.GAUGE, "a counter cannot be set"
        metric_values[self._key] = value


class MetricFamily:
    """Series of one name; Triton 24.10 has these two kinds."""

    COUNTER, GAUGE = range(2)

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name, self.description, self.kind = name, description, kind

    def Metric(self, labels: Mapping[str, str]) -> Metric:  # noqa: N802 - Triton's name
        return Metric(self, labels)


def metric(name: str, **labels: str) -> float:
    """For tests: the value of one series."""
    return metric_values[name, tuple(sorted(labels.items()))]


class InferenceResponse:
    """Outputs, or an error."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def arrays(self) -> dict[str, np.ndarray]:
        """For tests: the outputs by name."""
        assert self._error is None, self._error.message()
        return {tensor.name(): tensor.as_numpy() for tensor in self._tensors}


class InferenceResponseSender:
    """Keeps the responses of a decoupled request.

    Attributes:
        responses: in order.
        num_finals: responses with the final flag.
        first: set by the first response.
        finished: set by the final flag.
        cancelled: set by a test whose client leaves.
    """

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.num_finals = 0
        self.first, self.finished, self.cancelled = Event(), Event(), Event()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        # As the stub does: nothing may follow the final flag.
        assert not self.finished.is_set(), "a response after the final one"
        assert response is not None or flags
        if response is not None:
            self.responses.append(response)
        self.first.set()
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.num_finals += 1
            self.finished.set()

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()


class InferenceRequest:
    """Inputs by name."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray | Tensor],
        request_id: str = "",
        *,
        decoupled: bool = False,
    ) -> None:
        self._tensors = [
            value if isinstance(value, Tensor) else Tensor(name, value)
            for name, value in tensors.items()
        ]
        self._request_id = request_id
        self.sender = InferenceResponseSender() if decoupled else None

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def request_id(self) -> str:
        return self._request_id

    def get_response_sender(self) -> InferenceResponseSender:
        assert self.sender is not None, "only a decoupled model has response senders"
        return self.sender


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def unload_model(model_name: str) -> None:
    unloaded_models.append(model_name)
