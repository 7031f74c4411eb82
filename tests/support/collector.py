"""An OTLP collector that keeps spans, and shows a trace as a tree."""

from __future__ import annotations  # some of grpc's classes are generic only for type checkers

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage


@dataclass(frozen=True)
class Span:
    """One span, as it came."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str]


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Serves OTLP over gRPC."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)

    async def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_span(names["service.name"].removeprefix("saucer-"), span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace_of(self, work_id: str) -> list[Span]:
        """Of the first trace with spans of a task or deployment, every span; empty while there is none."""
        ids = [span.trace_id for span in self.spans if span.attributes.get("work_id") == work_id]
        return [span for span in self.spans if ids and span.trace_id == ids[0]]


def tree(spans: list[Span]) -> Iterator[str]:
    """A line for each span: what it is of, when it began after the first, how long it took."""
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_ns):
        children[span.parent_id].append(span)
    known = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_id not in known]
    first_ns = min(span.start_ns for span in spans)

    def lines(span: Span, indent: str, branch: str) -> Iterator[str]:
        took_ms, after_s = (span.end_ns - span.start_ns) / 1e6, (span.start_ns - first_ns) / 1e9
        name = f"{indent}{branch}{span.service}: {span.name}"
        yield f"{name:<74} {after_s:>8.3f} s {took_ms:>10.1f} ms"
        below = children[span.span_id]
        indent += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for child in below:
            yield from lines(child, indent, "└─ " if child is below[-1] else "├─ ")

    for root in sorted(roots, key=lambda span: span.start_ns):
        yield from lines(root, "", "")


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port, until the block ends."""
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        collector, server
    )
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(0)


def _span(service: str, span: SpanMessage) -> Span:
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {each.key: each.value.string_value for each in span.attributes},
    )
