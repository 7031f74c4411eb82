"""Structured logs and Prometheus metrics, the same in every process."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from prometheus_client import REGISTRY, start_http_server

from saucer.lib import tracing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


# How often the event loop says that it turns, and after how long without a word it counts as stuck.
BEAT_S = 1.0
STUCK_S = 30.0


class Heartbeat:
    """Of the event loop. What is asked in a thread of its own would answer also if nothing else did any more."""

    def __init__(self) -> None:
        self._beat_at_s = time.monotonic()

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            self._beat_at_s = time.monotonic()
            await asyncio.sleep(BEAT_S)

    @property
    def alive(self) -> bool:
        return time.monotonic() - self._beat_at_s < STUCK_S


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


def serve_metrics(listen: str, heartbeat: Heartbeat) -> int:
    """Serves /metrics for Prometheus from a thread of its own; the port it got. Raises OSError if it is taken.

    Beside it, for probes that shall be cheap and need no certificate: /alive, 200 while the event loop turns, and
    /serving, 200 while the gRPC server takes calls besides. Otherwise they answer 503.
    """
    host, _, port = listen.rpartition(":")
    server, _ = start_http_server(int(port), addr=host)
    metrics = server.get_app()
    assert metrics is not None
    server.set_app(_with_probes(metrics, heartbeat))
    return server.server_port


def _with_probes(metrics: WSGIApplication, heartbeat: Heartbeat) -> WSGIApplication:
    probes = {
        "/alive": lambda: heartbeat.alive,
        "/serving": lambda: heartbeat.alive and REGISTRY.get_sample_value("saucer_serving") == 1,
    }

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        probe = probes.get(environ["PATH_INFO"])
        if probe is None:
            return metrics(environ, start_response)
        status = HTTPStatus.OK if probe() else HTTPStatus.SERVICE_UNAVAILABLE
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain")])
        return [b""]

    return answer
