"""Traces over gRPC and NATS: W3C's traceparent goes with every call and event; spans go to an OTLP collector if a
setting names one.

Work outlives the call that asked for it, so its row keeps the traceparent that it was made under, and what it does
later belongs to that trace again. Without a collector nothing is recorded, and a traceparent that comes is passed on.
https://www.w3.org/TR/trace-context/
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

HEADER = "traceparent"
# A collector that does not answer gets spans for so long at the end of the process, then they are lost.
FLUSH_MS = 2000

SERVER = SpanKind.SERVER
CONSUMER = SpanKind.CONSUMER
INTERNAL = SpanKind.INTERNAL

_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("saucer")


def start(service: str, endpoint: str, ratio: float) -> Callable[[], None]:
    """Sends the process's spans to an OTLP collector over gRPC; what it returns sends the last ones, and ends it.

    Args:
        endpoint: like http://collector:4317; https:// for TLS.
        ratio: of the traces that begin here, the share that is recorded.
    """
    # ruff: noqa: PLC0415 - a fifth of a service's start, which only those with a collector need
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"saucer-{service}"}), sampler=ParentBasedTraceIdRatio(ratio)
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http:"))))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        provider.force_flush(FLUSH_MS)
        provider.shutdown()

    return stop


def current() -> str | None:
    """The traceparent of the present span; None outside any."""
    return _traceparent(None)


def trace_id() -> str | None:
    """The id of the present trace, as 32 hexadecimal digits; None outside any."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def metadata() -> tuple[tuple[str, str], ...]:
    """For a call to another service."""
    traceparent = current()
    return ((HEADER, traceparent),) if traceparent else ()


@contextmanager
def span(
    name: str, *, parent: str | None, kind: SpanKind = INTERNAL, attributes: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A span until the block ends, failed if the block raises. Without a parent a trace begins, also within another."""
    if parent is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield  # nothing is recorded, nothing is to be passed on: a span would cost 30 µs of each call
        return
    with _tracer.start_as_current_span(name, context=_context(parent), kind=kind, attributes=attributes):
        yield


def record(name: str, parent: str, started: datetime, ended: datetime, attributes: Mapping[str, str]) -> str:
    """A span whose times are known only afterwards; its traceparent."""
    recorded = _tracer.start_span(
        name, context=_context(parent), attributes=attributes, start_time=_nanoseconds(started)
    )
    recorded.end(_nanoseconds(ended))
    return _traceparent(trace.set_span_in_context(recorded)) or parent


def _context(traceparent: str | None) -> Context:
    return _propagator.extract({HEADER: traceparent} if traceparent else {}, Context())


def _traceparent(context: Context | None) -> str | None:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier.get(HEADER)


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000) * 1000
