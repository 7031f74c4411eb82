"""The registered Tritons as this process speaks to them: one client and one placement for each."""

import asyncio
from collections.abc import Callable

from saucer.publishing.domain import Triton
from saucer.publishing.placement import Placement
from saucer.publishing.service.tritons import Tritons
from saucer.publishing.triton import INFER_S, TritonClient, TritonUnavailable

# What a Triton was asked is answered for as long, once it is left for another address or is not registered any more.
CLOSE_GRACE_S = INFER_S

MakePlacement = Callable[[TritonClient, Triton], Placement]


class Fleet:
    """Belongs to one event loop; close it."""

    def __init__(self, tritons: Tritons, control_key: str, place: MakePlacement) -> None:
        self._tritons = tritons
        self._control_key = control_key
        self._place = place
        self._known: dict[str, tuple[Triton, TritonClient, Placement]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Closes every client."""
        for _, client, _ in self._known.values():
            await client.close()
        await asyncio.gather(*self._closing)

    async def refresh(self) -> list[Triton]:
        """Learns which there are; all of them."""
        found = {triton.triton_id: triton for triton, _ in await self._tritons.list_tritons()}
        for triton_id, (known, client, _) in list(self._known.items()):
            if triton_id not in found or found[triton_id].address != known.address:
                del self._known[triton_id]
                self._close_later(client)
        for triton_id, triton in found.items():
            if triton_id not in self._known:
                self._know(triton, TritonClient(triton.address, self._control_key))
            elif not _is_same(self._known[triton_id][0], triton):
                self._know(triton, self._known[triton_id][1])
        return list(found.values())

    async def client(self, triton_id: str) -> TritonClient:
        """Raises TritonUnavailable for one that is not registered."""
        return (await self._find(triton_id))[1]

    async def placement(self, triton_id: str) -> Placement:
        """Raises TritonUnavailable for one that is not registered."""
        return (await self._find(triton_id))[2]

    async def held(self, triton_id: str) -> list[str]:
        """Names of ours that one has, loaded or in its repository; none of one that does not answer."""
        try:
            return list(await (await self.placement(triton_id)).held())
        except TritonUnavailable:
            return []

    async def live(self) -> bool:
        """Whether any answers."""
        await self.refresh()
        for _, client, _ in list(self._known.values()):
            if await client.live():
                return True
        return False

    def _know(self, triton: Triton, client: TritonClient) -> None:
        self._known[triton.triton_id] = (triton, client, self._place(client, triton))

    def _close_later(self, client: TritonClient) -> None:
        task = asyncio.create_task(client.close(CLOSE_GRACE_S), name=f"close {client.address}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _find(self, triton_id: str) -> tuple[Triton, TritonClient, Placement]:
        if triton_id not in self._known:
            await self.refresh()
        if triton_id not in self._known:
            raise TritonUnavailable(f"no Triton {triton_id} is registered")
        return self._known[triton_id]


def _is_same(former: Triton, present: Triton) -> bool:
    return all(
        getattr(former, name) == getattr(present, name)
        for name in ("repository", "region_id", "spec_id", "threads", "copies", "gpu")
    )
