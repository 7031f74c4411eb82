"""Structured logs and Prometheus metrics, the same in every process."""

from __future__ import annotations

import logging
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from prometheus_client import REGISTRY, start_http_server

from saucer.lib import tracing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def configure_logging(service: str, *, json_lines: bool, level: str) -> None:
    """Logs to stderr: a JSON object a line, or a line for people. Standard logging goes the same way."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if json_lines:
        last: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        # Without local variables: they are long, and may be secrets.
        traceback = structlog.dev.RichTracebackFormatter(show_locals=False)
        last = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=28, exception_formatter=traceback)
        ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def _add_trace_id(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    trace_id = tracing.trace_id()
    if trace_id is not None:
        event.setdefault("trace_id", trace_id)
    return event


def serve_metrics(listen: str) -> int:
    """Serves /metrics for Prometheus from a thread of its own; the port it got. Raises OSError if it is taken.

    Beside it /serving, for probes that shall be cheap and need no certificate: 200 while the gRPC server takes calls.
    """
    host, _, port = listen.rpartition(":")
    server, _ = start_http_server(int(port), addr=host)
    metrics = server.get_app()
    assert metrics is not None
    server.set_app(_with_serving(metrics))
    return server.server_port


def _with_serving(metrics: WSGIApplication) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/serving":
            return metrics(environ, start_response)
        serving = REGISTRY.get_sample_value("saucer_serving") == 1
        status = HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain")])
        return [b""]

    return answer
