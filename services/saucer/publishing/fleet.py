"""The registered Tritons as this process speaks to them: one client and one placement for each."""

from collections.abc import Callable

from saucer.publishing.domain import Triton
from saucer.publishing.placement import Placement
from saucer.publishing.service.tritons import Tritons
from saucer.publishing.triton import TritonClient, TritonUnavailable

MakePlacement = Callable[[TritonClient, Triton], Placement]


class Fleet:
    """Belongs to one event loop; close it."""

    def __init__(self, tritons: Tritons, control_key: str, place: MakePlacement) -> None:
        self._tritons = tritons
        self._control_key = control_key
        self._place = place
        self._known: dict[str, tuple[Triton, TritonClient, Placement]] = {}

    async def close(self) -> None:
        """Closes every client."""
        for _, client, _ in self._known.values():
            await client.close()

    async def refresh(self) -> list[Triton]:
        """Learns which there are; all of them."""
        found = [triton for triton, _ in await self._tritons.list_tritons()]
        for triton in found:
            known = self._known.get(triton.triton_id)
            if known is not None and _same_place(known[0], triton):
                continue
            client = TritonClient(triton.address, self._control_key)
            self._known[triton.triton_id] = (triton, client, self._place(client, triton))
            if known is not None:
                await known[1].close()
        return found

    async def client(self, triton_id: str) -> TritonClient:
        """Raises TritonUnavailable for one that is not registered."""
        return (await self._find(triton_id))[1]

    async def placement(self, triton_id: str) -> Placement:
        """Raises TritonUnavailable for one that is not registered."""
        return (await self._find(triton_id))[2]

    async def live(self) -> bool:
        """Whether any answers."""
        for triton in await self.refresh():
            if await self._known[triton.triton_id][1].live():
                return True
        return False

    async def _find(self, triton_id: str) -> tuple[Triton, TritonClient, Placement]:
        if triton_id not in self._known:
            await self.refresh()
        if triton_id not in self._known:
            raise TritonUnavailable(f"no Triton {triton_id} is registered")
        return self._known[triton_id]


def _same_place(former: Triton, present: Triton) -> bool:
    return all(
        getattr(former, name) == getattr(present, name)
        for name in ("address", "repository", "threads", "copies", "gpu")
    )
