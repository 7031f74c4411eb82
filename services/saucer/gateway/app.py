"""The HTTP application: /healthz, and the transcoder for everything else."""

from __future__ import annotations  # some of grpc's classes are generic only for type checkers

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from saucer.gateway.transcoder import Transcoder

# A service that has not answered its health check by then counts as not answering.
HEALTH_TIMEOUT_S = 1.0


@dataclass
class Health:
    """Of the gateway and of what stands behind it."""

    channels: Mapping[str, grpc.aio.Channel]
    stopping: bool = False

    async def services(self) -> dict[str, str]:
        """SERVING, NOT_SERVING or UNAVAILABLE by name of service."""
        states = await asyncio.gather(*(_state(channel) for channel in self.channels.values()))
        return dict(zip(self.channels, states, strict=True))


def application(transcoder: Transcoder, health: Health) -> Starlette:
    """What uvicorn serves."""

    async def healthz(request: Request) -> Response:
        """200 as long as the gateway itself serves; a service that is down makes its own calls fail, not the others."""
        if health.stopping:
            return JSONResponse({"status": "STOPPING"}, 503)
        return JSONResponse({"status": "SERVING", "services": await health.services()})

    return Starlette(routes=[Route("/healthz", healthz), Mount("/", app=transcoder)])


async def _state(channel: grpc.aio.Channel) -> str:
    check: grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    try:
        answer = await check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        return "UNAVAILABLE"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
