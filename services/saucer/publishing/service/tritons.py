"""The Tritons that there are: registered, drained, live or not."""

from collections.abc import Collection
from os.path import normpath
from pathlib import PurePosixPath

from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from saucer.lib.postgres import Database
from saucer.publishing.domain import Form, Triton
from saucer.publishing.store import tritons as triton_store


class Tritons:
    """What serves."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, triton: Triton) -> Triton:
        """Registers a server, or changes what is known of it. Raises InvalidArgumentError: TRITON_NOT_APART."""
        async with self._database.transaction() as tx:
            await triton_store.lock_registrations(tx.connection)
            for other in await triton_store.list_tritons(tx.connection):
                if other.triton_id != triton.triton_id:
                    _check_apart(triton, other)
            return await triton_store.put(tx.connection, triton)

    async def drain(self, triton_id: str, draining: bool) -> Triton:
        """Whether it takes more; what it has is moved elsewhere as soon as there is room. Raises NotFoundError."""
        async with self._database.transaction() as tx:
            triton = await triton_store.drain(tx.connection, triton_id, draining)
        if triton is None:
            raise NotFoundError("triton", triton_id)
        return triton

    async def unregister(self, triton_id: str, held: Collection[str]) -> Triton:
        """Forgets a server; as it was. Raises NotFoundError, FailedPreconditionError: TRITON_IN_USE.

        Args:
            held: names of ours that it has still: what no deployment wants is unloaded later, and by no one else.
        """
        async with self._database.transaction() as tx:
            triton = await triton_store.lock(tx.connection, triton_id)
            if triton is None:
                raise NotFoundError("triton", triton_id)
            used = (await triton_store.used(tx.connection)).get(triton_id, 0)
            if used:
                raise FailedPreconditionError(
                    "TRITON_IN_USE",
                    f"Deployments are on {triton_id}: {used}. Drain it first, and unregister it once it carries none.",
                    used=used,
                )
            if held:
                raise FailedPreconditionError(
                    "TRITON_IN_USE",
                    f"{triton_id} has models that nobody wants any more: {len(held)}. Unregister it once they are "
                    "unloaded, within seconds; or stop it first, if it does not unload them.",
                    used=len(held),
                )
            await triton_store.remove(tx.connection, triton_id)
            return triton

    async def report(self, triton_id: str, *, live: bool) -> None:
        """Whether it answers, as the acting replica finds it."""
        async with self._database.reading() as connection:
            await triton_store.report(connection, triton_id, live)

    async def list_tritons(self) -> list[tuple[Triton, int]]:
        """All, with how many deployments each has."""
        async with self._database.reading() as connection:
            used = await triton_store.used(connection)
            return [(found, used.get(found.triton_id, 0)) for found in await triton_store.list_tritons(connection)]

    async def check(self, form: Form) -> None:
        """Raises InvalidArgumentError: SPEC_NOT_SERVED, REPLICAS_UNAVAILABLE."""
        async with self._database.reading() as connection:
            known = await triton_store.list_tritons(connection)
        served = sorted({f"{found.spec_id} in {found.region_id}" for found in known})
        if f"{form.spec_id} in {form.region_id}" not in served:
            raise InvalidArgumentError(
                "SPEC_NOT_SERVED",
                f"spec_id: no Triton serves on {form.spec_id} in {form.region_id}; some do on "
                f"{', '.join(served) or 'nothing'}.",
            )
        fitting = sum((found.spec_id, found.region_id) == (form.spec_id, form.region_id) for found in known)
        if form.replicas > fitting:
            raise InvalidArgumentError(
                "REPLICAS_UNAVAILABLE",
                f"replicas: each needs a Triton of its own, and {fitting} serve on {form.spec_id} in {form.region_id}; "
                f"not {form.replicas}.",
            )


def _check_apart(triton: Triton, other: Triton) -> None:
    """Two that share a server or a folder would each unload and remove what the other carries."""
    if triton.address == other.address:
        shared = f"address: {triton.address} is that of {other.triton_id}"
    elif _is_nested(triton.repository, other.repository):
        shared = f"repository: {triton.repository} shares files with {other.repository}, that of {other.triton_id}"
    else:
        return
    raise InvalidArgumentError(
        "TRITON_NOT_APART",
        f"{shared}; each Triton needs its own. If it is the same server, register it as {other.triton_id}, or "
        f"unregister {other.triton_id} first.",
    )


def _is_nested(one: str, other: str) -> bool:
    first, second = (PurePosixPath(normpath(folder)) for folder in (one, other))
    return first.is_relative_to(second) or second.is_relative_to(first)
