"""What a stage tells Prometheus through Triton: plain numbers, which a thread passes on once a second."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:  # each stage imports only what it runs
    from python_backend.encoder_cache import EncoderCache
    from python_backend.engine import Engine, StepCounts
    from python_backend.scheduler import StepKind

_LOG = logging.getLogger(__name__)
_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMetric:
    """One time series; counters have names that end with `_total`, the others are gauges.

    Attributes:
        name: of its family, as Prometheus sees it.
        description: of its family.
        read: its value now; called from another thread than the stage's.
        labels: besides the model's.
    """

    name: str
    description: str
    read: Callable[[], float]
    labels: Mapping[str, str] = field(default_factory=dict)


class MetricsPublisher:
    """Keeps Triton's copy of some numbers up to date until `close`.

    Each update is a round trip to the server: a thread of its own makes them, so that no step and no
    request waits, and only for what has changed.

    Args:
        model: label of all series, the Triton model's name as in Triton's own metrics.
        metrics: what to publish.
    """

    def __init__(self, model: str, metrics: Sequence[StageMetric]) -> None:
        # Triton removes the series of a family that nobody holds any more.
        self._families = {metric.name: _family(metric) for metric in metrics}
        self._series = [
            (metric, self._families[metric.name].Metric(labels={"model": model, **metric.labels}))
            for metric in metrics
        ]
        self._published = [0.0] * len(metrics)
        self._closed = Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Tell Triton what has changed since the last call."""
        for i, (metric, series) in enumerate(self._series):
            value, before = float(metric.read()), self._published[i]
            if value == before:
                continue
            if _is_counter(metric):
                series.increment(value - before)
            else:
                series.set(value)
            self._published[i] = value

    def _run(self) -> None:
        while not self._closed.wait(_INTERVAL_S):
            try:
                self.publish()
            except Exception:
                _LOG.exception("no more metrics of this stage: Triton does not take them")
                return

    def close(self) -> None:
        """Stop; a second call does nothing."""
        self._closed.set()
        # Not for ever: Triton may not answer any more while it unloads the model.
        self._thread.join(_INTERVAL_S)


def decoder_metrics(engine: Engine) -> list[StageMetric]:
    """What the decoder tells of its queue and its steps."""
    scheduler = engine.scheduler
    metrics = [
        StageMetric(
            name="triton_vlm_decoder_waiting",
            description="Requests that wait for a row of the KV cache.",
            read=lambda: scheduler.num_waiting,
        ),
        StageMetric(
            name="triton_vlm_decoder_rows",
            description="Rows of the KV cache in use: choices that run and the prompt that is computed.",
            read=lambda: scheduler.num_running,
        ),
    ]
    for kind, counts in engine.step_counts.items():
        metrics += _step_metrics(kind, counts)
    return metrics


def _step_metrics(kind: StepKind, counts: StepCounts) -> list[StageMetric]:
    labels = {"kind": kind}
    return [
        StageMetric(
            name="triton_vlm_decoder_steps_total",
            description="Steps of the engine, by kind: a chunk of a prompt, or a token of every row.",
            read=lambda: counts.num_steps,
            labels=labels,
        ),
        StageMetric(
            name="triton_vlm_decoder_step_tokens_total",
            description="Tokens that steps computed; of decode steps as many as rows.",
            read=lambda: counts.num_tokens,
            labels=labels,
        ),
        StageMetric(
            name="triton_vlm_decoder_step_seconds_total",
            description="Time of steps, sampling and text included.",
            read=lambda: counts.seconds,
            labels=labels,
        ),
    ]


def encoder_metrics(cache: EncoderCache) -> list[StageMetric]:
    """What the encoder tells of its cache."""
    return [
        StageMetric(
            name="triton_vlm_image_cache_hits_total",
            description="Pictures whose embeddings were in the encoder's cache.",
            read=lambda: cache.num_hits,
        ),
        StageMetric(
            name="triton_vlm_image_cache_misses_total",
            description="Pictures that the encoder had to compute.",
            read=lambda: cache.num_misses,
        ),
        StageMetric(
            name="triton_vlm_image_cache_bytes",
            description="Size of the embeddings in the encoder's cache.",
            read=lambda: cache.num_bytes,
        ),
    ]


def _is_counter(metric: StageMetric) -> bool:
    return metric.name.endswith("_total")


def _family(metric: StageMetric) -> Any:
    kind = pb_utils.MetricFamily.COUNTER if _is_counter(metric) else pb_utils.MetricFamily.GAUGE
    return pb_utils.MetricFamily(name=metric.name, description=metric.description, kind=kind)
