"""Requests as they come: each is whole in time, or its call ends.

gRPC itself waits for the rest of a message for ever, whoever sends it.
"""

from __future__ import annotations  # some of grpc's classes are generic only for type checkers

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from saucer.lib.errors import DeadlineExceededError, DomainError, InvalidArgumentError

# A request of a stream is whole so long after it is waited for, or the stream ends.
MAX_RECEIVE_S = 60.0
# A request without bytes comes with its headers; one that is not whole after this is late.
SMALL_REQUEST_S = 0.25

T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class WhenLate:
    """Calls something if its block takes longer than SMALL_REQUEST_S. What that raises ends the block, and is raised.

    A timer and no more: a task for each request, or a generator, would cost as much again.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._refusal: DomainError | None = None

    def __enter__(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        # In two parts: where the loop was held up, the first lapses although the request is there.
        self._timer = self._loop.call_later(SMALL_REQUEST_S / 2, self._wait_on)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if kind is asyncio.CancelledError and self._refusal is not None:
            assert self._task is not None
            self._task.uncancel()
            raise self._refusal

    def _wait_on(self) -> None:
        self._timer = self._loop.call_later(SMALL_REQUEST_S / 2, self._late)

    def _late(self) -> None:
        try:
            self._call()
        except DomainError as error:
            self._refusal = error
            assert self._task is not None
            self._task.cancel()


def refuse_late() -> NoReturn:
    """Raises DeadlineExceededError."""
    raise _too_slow(SMALL_REQUEST_S)


async def only(context: Context) -> Message:
    """The request of a call that has one. Raises InvalidArgumentError: it is unreadable, or did not come."""
    request = await _next(context)
    if request is None:
        raise InvalidArgumentError("REQUEST_MISSING", "The call ended before its request was whole.")
    return request


async def _next(context: Context) -> Message | None:
    """None: there is no more. Not by the iterator that gRPC makes of it: each of its steps is a generator's."""
    try:
        read = await context.read()
    except DecodeError as error:
        raise InvalidArgumentError("REQUEST_UNREADABLE", "The request is not a message of this method.") from error
    return None if read is grpc.aio.EOF else cast(Message, read)


async def timely(context: Context) -> AsyncIterator[Message]:
    """The requests of a stream. Raises DeadlineExceededError: one is not whole in time."""
    while (request := await in_time(_next(context))) is not None:
        yield request


async def in_time(receiving: Awaitable[T]) -> T:
    """Raises DeadlineExceededError after MAX_RECEIVE_S; what `receiving` raises."""
    try:
        async with asyncio.timeout(MAX_RECEIVE_S):
            return await receiving
    except TimeoutError as error:
        raise _too_slow(MAX_RECEIVE_S) from error


def _too_slow(limit_s: float) -> DeadlineExceededError:
    return DeadlineExceededError("REQUEST_TOO_SLOW", f"The request was not whole within {limit_s:g} seconds.")
