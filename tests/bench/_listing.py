"""image_pages_p99_growth: a page of 50 images of 100,000 against one of 1,000: any page, of all images, of the few
without labels, of a frequent and of a rare split, of a frequent and of a rare class. The service is dataset as it is
wired, and its client is in the same process."""

import random
import time
from pathlib import Path
from typing import Any

import asyncpg

from saucer.dataset.v1 import dataset_pb2
from saucer.lib import auth
from saucer.lib.ids import new_id
from saucer.lib.paging import read_page
from tests.bench._importing import TINY, Importer, write_images
from tests.bench.harness import LEAST_ROUNDS, Row, Say, percentile, row
from tests.support.services import Metadata

FEW, MANY = 1_000, 100_000
PAGES = 200
# One in so many has no label, and one in so many is of the test split.
UNLABELLED, TEST = 100, 7
# Images of the validation split and of the class RARE, in a set of any size.
RARE_IMAGES = 20
COMMON, RARE = "cup", "plate"
# What a page may be of.
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"labelled": False},
    {"split": "test"},
    {"split": "validation"},
    {"class_name": COMMON},
    {"class_name": RARE},
)


async def measure(ours: Importer, folder: Path, say: Say) -> list[Row]:
    """In turns."""
    account_id = await ours.account()
    metadata = ours.tokens.metadata(auth.Role.EDITOR, account_id)
    source = write_images(folder / "ten", 10, TINY, TINY)
    await ours.import_s(source, account_id)
    sets = {count: await _grown(ours.database_url, account_id, count) for count in (FEW, MANY)}
    measured: dict[int, list[float]] = {FEW: [], MANY: []}
    for number in range(1, LEAST_ROUNDS + 1):
        for count, set_id in sets.items():
            measured[count].append(await _p99_ms(ours, metadata, set_id, count, number))
        many_ms, few_ms = measured[MANY][-1], measured[FEW][-1]
        say(f"image_pages_p99_growth {number}/{LEAST_ROUNDS}: {many_ms:.2f} against {few_ms:.2f} ms")
    return [row("image_pages_p99_growth", "ms", "<= 2.0", measured[MANY], measured[FEW])]


async def _grown(database_url: str, account_id: str, count: int) -> str:
    """A version of so many images, as the account's only one has them."""
    set_id = new_id()
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """
            INSERT INTO dataset_version (dataset_version_id, account_id, display_name, content_hash, manifest_key,
                                         manifest_sha256, image_prefix, label_kind, classes, statistics, created_at)
            SELECT $1, account_id, display_name, $3, manifest_key, manifest_sha256, image_prefix, label_kind, $4,
                   statistics, created_at
            FROM dataset_version WHERE account_id = $2 LIMIT 1
            """,
            set_id,
            account_id,
            set_id,
            [COMMON, RARE],
        )
        await connection.execute(
            """
            INSERT INTO listed_image (set_id, place, sha256, width, height, split, source_name, labels, labelled)
            SELECT $1, n, encode(sha256(n::text::bytea), 'hex'), 640, 480,
                   CASE WHEN n % $5 = 1 THEN 'validation' WHEN n % $3 = 0 THEN 'test' ELSE 'train' END,
                   'images/' || n || '.jpg',
                   CASE WHEN n % $4 = 0 THEN '[]' WHEN n % $5 = 2 THEN '[[1,1,2,30,40,0]]'
                        ELSE '[[0,1,2,30,40,0],[0,5,6,70.5,80.25,0]]' END::json, n % $4 <> 0
            FROM generate_series(1, $2::bigint) AS n
            """,
            set_id,
            count,
            TEST,
            UNLABELLED,
            count // RARE_IMAGES,
            timeout=120,
        )
        await connection.execute("ANALYZE listed_image")
    finally:
        await connection.close()
    return set_id


async def _p99_ms(ours: Importer, metadata: Metadata, set_id: str, count: int, seed: int) -> float:
    draw = random.Random(seed)
    taken_ms = []
    for _ in range(PAGES):
        request = dataset_pb2.ListImagesRequest(image_set_id=set_id, **draw.choice(KINDS))
        request.page_token = read_page(request).token([draw.randrange(count)])
        started = time.perf_counter()
        await ours.stub.ListImages(request, metadata=metadata)
        taken_ms.append(1000 * (time.perf_counter() - started))
    return percentile(taken_ms, 0.99)
