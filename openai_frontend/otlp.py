"""Where spans go: an OTLP exporter, if the settings ask for one. OpenTelemetry's packages are optional."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openai_frontend.settings import OTLP_VARIABLE, Settings, SettingsError
from openai_frontend.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from openai_frontend.tracing import Tracing


def span_exporter(settings: Settings) -> SpanExporter | None:
    """What sends spans to `otlp_endpoint`; None without one. Nothing connects yet.

    Raises:
        SettingsError: there is an endpoint, and OpenTelemetry is not installed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise SettingsError(
            "otlp_endpoint is set and OpenTelemetry is not installed: pip install "
            f"'triton-vlm[tracing]', or leave --otlp-endpoint and {OTLP_VARIABLE} out"
        ) from error
    # Headers, certificates and time limits are OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_...
    return OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces")


def open_tracing(settings: Settings) -> Tracing | None:
    """Spans as the settings want them, sent by a thread in batches; None for none.

    Raises:
        SettingsError: as `span_exporter`.
    """
    exporter = span_exporter(settings)
    if exporter is None:
        return None
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from openai_frontend.tracing import Tracing

    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over these.
    service = Resource({"service.name": "triton-vlm", "service.version": VERSION})
    service = service.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create(service.attributes))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
