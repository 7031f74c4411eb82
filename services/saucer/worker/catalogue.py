"""Starting points whose weights come from elsewhere: fetched once, checked, and kept in the object store from then on.

MMDetection's model zoo publishes RTMDet trained on COCO under Apache-2.0, each file with the first eight digits of its
SHA-256 in its name (tools/model_converters/publish_model.py). That guards against damage and a wrong file; that nothing
in it is executed is up to checkpoint.load_weights().
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from saucer.lib.errors import DomainError, NotFoundError, UnavailableError
from saucer.lib.objects import Objects, sha256_of
from saucer.worker.job import StartingPoint

# Where the zoo is; a mirror, any object store with the same folders, may stand in.
ZOO_URL = "https://download.openmmlab.com/mmdetection/v3.0/rtmdet"
CACHE_PREFIX = "system/catalogue"


class CatalogueError(Exception):
    """The mirror does not have the weights, or others of that name; the message says what to do."""


@dataclass(frozen=True)
class Pretrained:
    """Weights below the zoo's address."""

    key: str

    @property
    def sha256_begin(self) -> str:
        """As the file's name ends."""
        return self.key.rpartition("-")[2].removesuffix(".pth")

    @property
    def file_name(self) -> str:
        """Without its folder."""
        return self.key.rpartition("/")[2]


def _zoo(size: str, stamp: str) -> Pretrained:
    run = f"rtmdet_{size}_8xb32-300e_coco"
    return Pretrained(f"{run}/{run}_{stamp}.pth")


PRETRAINED: Mapping[StartingPoint, Pretrained] = {
    StartingPoint.RTMDET_TINY_COCO: _zoo("tiny", "20220902_112414-78e30dcc"),
    StartingPoint.RTMDET_S_COCO: _zoo("s", "20220905_161602-387a891e"),
    StartingPoint.RTMDET_M_COCO: _zoo("m", "20220719_112220-229f527c"),
    StartingPoint.RTMDET_L_COCO: _zoo("l", "20220719_112030-5a0be7c4"),
}


async def fetch(objects: Objects, point: StartingPoint, mirror_url: str, file: Path) -> None:
    """Puts a starting point's weights into `file`, out of the object store if it has them.

    Raises CatalogueError, and UnavailableError where the mirror or the object store does not answer.
    """
    entry = PRETRAINED[point]
    cached = f"{CACHE_PREFIX}/{entry.file_name}"
    try:
        await objects.download(cached, file)
        if await _is_whole(entry, file):
            return
    except NotFoundError:
        pass
    await _fetch_from(mirror_url, point, entry, file)
    await objects.put(cached, file)


async def _fetch_from(mirror_url: str, point: StartingPoint, entry: Pretrained, file: Path) -> None:
    try:
        await Objects(mirror_url).download(entry.key, file)
    except NotFoundError as error:
        raise CatalogueError(_not_fetched(mirror_url, point, error)) from error
    except UnavailableError as error:
        raise UnavailableError("CATALOGUE_UNAVAILABLE", _not_fetched(mirror_url, point, error)) from error
    if not await _is_whole(entry, file):
        raise CatalogueError(
            f"The weights of {point} from {mirror_url} are not what their checksum {entry.sha256_begin} says. Have the "
            "operator look at the mirror, or choose another starting point."
        )


def _not_fetched(mirror_url: str, point: StartingPoint, error: DomainError) -> str:
    why = error.message.splitlines()[0]  # after it come the library's own insides
    return (
        f"The weights of {point} cannot be fetched from {mirror_url}: {why} Choose the starting point "
        f"{StartingPoint.IMAGENET_LITE0}, which needs no network, or have the operator set SAUCER_CATALOGUE_URL to "
        "a mirror."
    )


async def _is_whole(entry: Pretrained, file: Path) -> bool:
    return (await asyncio.to_thread(sha256_of, file)).startswith(entry.sha256_begin)
