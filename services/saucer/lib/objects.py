"""The object store: file:// on one machine, s3:// and the like elsewhere; one async face.

Keys are relative paths of letters, digits and `._-/`. Users' keys lie below accounts/<account id>/; what Saucer loads
again lies below system/<account id>/, where no user can write, and is checked against its stored checksum.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.exceptions import NotFoundError as NoSuchObjectError
from obstore.store import LocalStore, ObjectStore, from_url

from saucer.lib.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

MAX_KEY_LENGTH = 1024
# Objects read whole into memory; a larger one is refused: stream it. Above what Saucer itself writes for that: a data
# set with as many images and boxes as are taken has a manifest of about 0.6 GB.
MAX_WHOLE_BYTES = 1024 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
# A large object is written in parts; so many of them lie in memory at once. S3 takes no smaller ones.
PARTS_AT_ONCE = 2
PART_BYTES = 5 * 1024 * 1024
# Of a web server that does not answer; then UnavailableError.
HTTP_RETRIES = 2
HTTP_RETRIED_FOR = timedelta(seconds=20)
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


def user_prefix(account_id: str) -> str:
    """Where an account's users read and write."""
    return f"accounts/{account_id}"


def system_prefix(account_id: str) -> str:
    """Where Saucer keeps what it loads again; no user can write there."""
    return f"system/{account_id}"


def check_key(key: str) -> str:
    """The key. Raises InvalidArgumentError for a scheme, `..`, an absolute path, or characters outside the set."""
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise InvalidArgumentError(
            "KEY_INVALID",
            f"{key[:100]!r} is no key of the object store: a relative path of letters, digits and ._- "
            "whose parts do not begin with a dot.",
            key=key[:100],
        )
    return key


@dataclass(frozen=True)
class Listed:
    """An object as the store lists it. Its key may hold any characters: others than Saucer write below accounts/."""

    key: str
    size_bytes: int


class Objects:
    """A store below one URL."""

    def __init__(self, url: str) -> None:
        """`file:///folder` (made if missing), `s3://bucket/prefix`, `memory:///`; `https://host/path` to read from.

        Where S3 is, and with what keys, the environment says: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID etc.
        """
        self.url = url
        self._store: ObjectStore
        self._folder: Path | None = None
        self._part_bytes = PART_BYTES
        if url.startswith("file://"):
            folder = Path(url.removeprefix("file://"))
            folder.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(folder, mkdir=True)
            self._folder = folder
            self._part_bytes = CHUNK_BYTES
        elif url.startswith(("http://", "https://")):
            self._store = from_url(
                url,
                client_options={"allow_http": True},
                retry_config={"max_retries": HTTP_RETRIES, "retry_timeout": HTTP_RETRIED_FOR},
            )
        else:
            self._store = from_url(url)

    async def put(self, key: str, data: bytes | Path) -> str:
        """Writes an object whole or not at all; its SHA-256 as hex."""
        try:
            await obstore.put_async(
                self._store, check_key(key), data, chunk_size=self._part_bytes, max_concurrency=PARTS_AT_ONCE
            )
        except StoreError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store took no {key}: {error}") from error
        return await asyncio.to_thread(sha256_of, data)

    async def get(self, key: str, *, sha256: str | None = None, max_bytes: int | None = None) -> bytes:
        """An object whole, of at most `max_bytes`; None: MAX_WHOLE_BYTES.

        Raises:
            NotFoundError: there is none. DataLossError: it does not match the checksum. UnavailableError.
            ResourceExhaustedError: OBJECT_TOO_LARGE: it is larger, which is told before it is read.
        """
        most = MAX_WHOLE_BYTES if max_bytes is None else max_bytes
        return b"".join([chunk async for chunk in self.stream(key, sha256=sha256, max_bytes=most)])

    async def stream(
        self, source: str | Listed, *, sha256: str | None = None, max_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """An object in chunks; raises as get() does, DataLossError after the last chunk."""
        key = source.key if isinstance(source, Listed) else check_key(source)
        digest = hashlib.sha256() if sha256 is not None else None
        try:
            result = await obstore.get_async(self._store, key)
            if max_bytes is not None and result.meta["size"] > max_bytes:
                raise ResourceExhaustedError(
                    "OBJECT_TOO_LARGE",
                    f"{key} has {result.meta['size']:,} bytes; at most {max_bytes:,} are read at once.",
                    key=key,
                )
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                data = bytes(chunk)
                if digest is not None:
                    await asyncio.to_thread(digest.update, data)
                yield data
        except (NoSuchObjectError, FileNotFoundError) as error:
            raise NotFoundError("object", key) from error
        except StoreError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store gave no {key}: {error}") from error
        if digest is not None and digest.hexdigest() != sha256:
            raise DataLossError("CHECKSUM_MISMATCH", f"{key} is not what its checksum says.", key=key)

    async def download(self, key: str, file: Path, *, sha256: str | None = None) -> None:
        """An object into a file, which appears only when it is whole; raises as get() does."""
        partial = file.with_name(file.name + ".partial")
        try:
            with partial.open("wb") as out:
                async for chunk in self.stream(key, sha256=sha256):
                    await asyncio.to_thread(out.write, chunk)
            partial.rename(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def local(self, key: str) -> Path | None:
        """Where the object or the folder of objects lies, if the store is a folder of this machine."""
        return self._folder / check_key(key) if self._folder is not None else None

    def put_if_missing(self, key: str, read: Callable[[], bytes]) -> bool:
        """Writes an object unless there is one; whether it was written. Blocks: for a thread, many keys in one.

        What `read` raises ends it. Raises UnavailableError.
        """
        file = self.local(key)
        try:
            # Of a file the store would say so by an exception, which takes ten times as long.
            if self._has(key) if file is None else file.exists():
                return False
            obstore.put(self._store, key, read())
        except StoreError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store took no {key}: {error}") from error
        return True

    def _has(self, key: str) -> bool:
        try:
            obstore.head(self._store, check_key(key))
        except (NoSuchObjectError, FileNotFoundError):
            return False
        return True

    async def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        try:
            await obstore.head_async(self._store, check_key(key))
        except (NoSuchObjectError, FileNotFoundError):
            return False
        except StoreError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store does not say of {key}: {error}") from error
        return True

    async def keys(self, prefix: str) -> list[str]:
        """Every key below a prefix, sorted."""
        return sorted([found.key async for found in self.listed(prefix)])

    async def listed(self, prefix: str) -> AsyncIterator[Listed]:
        """Every object below a prefix, in no order. Raises UnavailableError."""
        try:
            async for batch in obstore.list(self._store, check_key(prefix)):
                for item in batch:
                    yield Listed(str(item["path"]), int(item["size"]))
        except StoreError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store does not list {prefix}: {error}") from error

    async def copy(self, source: str, target: str) -> None:
        """Copies within the store."""
        try:
            await obstore.copy_async(self._store, check_key(source), check_key(target))
        except StoreError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store copied no {source}: {error}") from error

    async def delete(self, key: str) -> None:
        """Removes an object; one that is not there is removed already."""
        try:
            await obstore.delete_async(self._store, check_key(key))
        except (NoSuchObjectError, FileNotFoundError):
            return
        except StoreError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store removed no {key}: {error}") from error


def sha256_of(data: bytes | Path) -> str:
    """SHA-256 as hex, of bytes or of a file read in chunks."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
