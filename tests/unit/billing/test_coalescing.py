"""Calls that wait while the last of their key is in flight go together, and each gets its own answer."""

import asyncio
from collections.abc import Sequence

import pytest

from saucer.billing.coalescing import MAX_TOGETHER, TURNS, Coalescer


class Sender:
    """Answers with ten times the request once it is let; keeps what went together."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[int]]] = []
        self.let = asyncio.Event()

    async def __call__(self, key: str, requests: Sequence[int]) -> list[int | Exception]:
        self.sent.append((key, list(requests)))
        await self.let.wait()
        return [ValueError(request) if request < 0 else 10 * request for request in requests]


async def others_have_gone_on() -> None:
    for _ in range(3 * TURNS):
        await asyncio.sleep(0)


async def test_a_call_that_finds_nothing_in_flight_goes_at_once_and_those_behind_it_go_together() -> None:
    sender = Sender()
    coalescer = Coalescer(sender)
    calls = [asyncio.create_task(coalescer("a", 1))]
    await others_have_gone_on()
    calls += [asyncio.create_task(coalescer("a", number)) for number in (2, 3, 4)]
    await others_have_gone_on()
    assert sender.sent == [("a", [1])]
    sender.let.set()
    assert await asyncio.gather(*calls) == [10, 20, 30, 40]
    assert sender.sent == [("a", [1]), ("a", [2, 3, 4])]


async def test_calls_that_arrive_one_after_the_other_while_a_round_is_about_to_go_join_it() -> None:
    sender = Sender()
    sender.let.set()
    coalescer = Coalescer(sender)
    calls = []
    for number in range(MAX_TOGETHER):
        calls.append(asyncio.create_task(coalescer("a", number)))
        await asyncio.sleep(0)
    assert await asyncio.gather(*calls) == [10 * number for number in range(MAX_TOGETHER)]
    assert sender.sent == [("a", list(range(MAX_TOGETHER)))]


async def test_keys_do_not_wait_for_each_other() -> None:
    sender = Sender()
    coalescer = Coalescer(sender)
    calls = [asyncio.create_task(coalescer(key, 1)) for key in ("a", "b")]
    await others_have_gone_on()
    assert sender.sent == [("a", [1]), ("b", [1])]
    sender.let.set()
    await asyncio.gather(*calls)


async def test_one_refused_refuses_no_neighbour() -> None:
    sender = Sender()
    sender.let.set()
    coalescer = Coalescer(sender)
    answers = await asyncio.gather(*(coalescer("a", number) for number in (1, -2, 3)), return_exceptions=True)
    assert [answer if isinstance(answer, int) else type(answer) for answer in answers] == [10, ValueError, 30]


async def test_what_the_sending_raises_every_caller_of_that_round_gets_and_the_next_round_goes_on() -> None:
    rounds = 0

    async def send(key: str, requests: Sequence[int]) -> list[int | Exception]:
        nonlocal rounds
        rounds += 1
        await asyncio.sleep(0)
        if rounds == 2:
            raise OSError("gone")
        return list(requests)

    coalescer = Coalescer(send)
    first = asyncio.create_task(coalescer("a", 1))
    await others_have_gone_on()
    answers = await asyncio.gather(first, coalescer("a", 2), coalescer("a", 3), return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, OSError, OSError]
    assert await coalescer("a", 4) == 4


async def test_a_cancelled_caller_loses_its_answer_and_nobody_elses() -> None:
    sender = Sender()
    coalescer = Coalescer(sender)
    calls = [asyncio.create_task(coalescer("a", number)) for number in (1, 2)]
    await others_have_gone_on()
    calls[0].cancel()
    sender.let.set()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    assert await calls[1] == 20
    assert [request for _, requests in sender.sent for request in requests] == [1, 2]


async def test_no_more_than_the_limit_go_together() -> None:
    sender = Sender()
    sender.let.set()
    coalescer = Coalescer(sender)
    await asyncio.gather(*(coalescer("a", number) for number in range(2 * MAX_TOGETHER + 1)))
    assert max(len(requests) for _, requests in sender.sent) == MAX_TOGETHER
    assert sum(len(requests) for _, requests in sender.sent) == 2 * MAX_TOGETHER + 1
