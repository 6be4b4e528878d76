"""Prometheus metrics of the proxy.

One registry per application instead of the global one, so that two applications in a process (as in
tests) do not share counters. Label values come from fixed sets: a client cannot create series.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from openai_frontend.record import RequestRecord

_PREFIX = "triton_vlm_"
_LATENCY_BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 2.0)


class Metrics:
    """Counters and histograms of one application."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(_PREFIX + name, text, buckets=buckets, registry=registry)

        self._requests = Counter(
            _PREFIX + "requests",
            "HTTP requests answered, by route and status (499: the client left first).",
            ("endpoint", "status"),
            registry=registry,
        )
        self._running = Gauge(
            _PREFIX + "requests_running", "Generations in progress.", registry=registry
        )
        self._prompt_tokens = Counter(
            _PREFIX + "prompt_tokens", "Prompt tokens, image tokens included.", registry=registry
        )
        self._generation_tokens = Counter(
            _PREFIX + "generation_tokens", "Generated tokens.", registry=registry
        )
        self._prefix_cache_hits = Counter(
            _PREFIX + "prefix_cache_hits",
            "Prompt tokens that were in the KV cache of an earlier request.",
            registry=registry,
        )
        self._draft_tokens = Counter(
            _PREFIX + "draft_tokens",
            "Tokens that the engine guessed and computed with the one before.",
            registry=registry,
        )
        self._accepted_draft_tokens = Counter(
            _PREFIX + "accepted_draft_tokens",
            "Guessed tokens that were right: each saved a step.",
            registry=registry,
        )
        self._time_to_first_token = histogram(
            "time_to_first_token_seconds",
            "From the arrival of the request to its first token.",
            _LATENCY_BUCKETS_S,
        )
        self._time_per_output_token = histogram(
            "time_per_output_token_seconds",
            "Mean time between two tokens of one choice after the first.",
            _TPOT_BUCKETS_S,
        )
        self._latency = histogram(
            "e2e_request_latency_seconds",
            "From the arrival of a generation request to the end of its answer.",
            _LATENCY_BUCKETS_S,
        )
        self._image_fetch = histogram(
            "image_fetch_seconds", "Time to fetch one image over HTTP.", _LATENCY_BUCKETS_S
        )

        self._image_store_hits = Counter(
            _PREFIX + "image_store_hits",
            "Images that a request named by the uuid of an earlier one.",
            registry=registry,
        )
        self._image_store_misses = Counter(
            _PREFIX + "image_store_misses",
            "Images that a request named and that were not, or no longer, there.",
            registry=registry,
        )

    def request_started(self, record: RequestRecord) -> None:
        """Count a generation as running."""
        if record.is_generation:
            self._running.inc()

    def request_ended(self, record: RequestRecord) -> None:
        """Count a request that `request_started` has seen."""
        self._requests.labels(record.endpoint, str(record.final_status)).inc()
        if not record.is_generation:
            return
        self._running.dec()
        self._latency.observe(record.elapsed_s)
        self._prompt_tokens.inc(record.prompt_tokens)
        self._generation_tokens.inc(record.completion_tokens)
        self._prefix_cache_hits.inc(record.cached_tokens)
        self._draft_tokens.inc(record.draft_tokens)
        self._accepted_draft_tokens.inc(record.accepted_draft_tokens)
        if record.time_to_first_token_s is not None:
            self._time_to_first_token.observe(record.time_to_first_token_s)
        if record.time_per_output_token_s is not None:
            self._time_per_output_token.observe(record.time_per_output_token_s)

    def image_fetched(self, seconds: float) -> None:
        """Count one fetched image."""
        self._image_fetch.observe(seconds)

    def image_looked_up(self, is_hit: bool) -> None:
        """Count one image that was named instead of sent."""
        (self._image_store_hits if is_hit else self._image_store_misses).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
