"""Calls dataset as an account's editor does."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np

from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.lib.auth import Role
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from tests.support.events import until
from tests.support.services import Metadata, Tokens

CHUNK_BYTES = 64 * 1024
ENDED = (dataset_pb2.IMPORT_STATE_SUCCEEDED, dataset_pb2.IMPORT_STATE_FAILED)


@dataclass(frozen=True)
class Client:
    """One caller of one running service."""

    stub: "dataset_pb2_grpc.DatasetServiceAsyncStub"  # of the type stubs only
    metadata: Metadata
    account_id: str
    store: Path

    async def create_upload(self, size_bytes: int, request_id: str | None = None) -> dataset_pb2.Upload:
        return await self.stub.CreateUpload(
            dataset_pb2.CreateUploadRequest(request_id=request_id or new_id(), size_bytes=size_bytes),
            metadata=self.metadata,
        )

    async def write(self, upload_id: str, offset_bytes: int, data: bytes) -> dataset_pb2.Upload:
        return await self.stub.WriteUpload(
            dataset_pb2.WriteUploadRequest(upload_id=upload_id, offset_bytes=offset_bytes, data=data),
            metadata=self.metadata,
        )

    async def get_upload(self, upload_id: str, chunks_from_bytes: int | None = None) -> dataset_pb2.Upload:
        request = dataset_pb2.GetUploadRequest(upload_id=upload_id, chunks_from_bytes=chunks_from_bytes)
        return await self.stub.GetUpload(request, metadata=self.metadata)

    async def upload(self, data: bytes) -> str:
        upload = await self.create_upload(len(data))
        for start in range(0, len(data), CHUNK_BYTES):
            await self.write(upload.upload_id, start, data[start : start + CHUNK_BYTES])
        return upload.upload_id

    async def start(self, *, request_id: str | None = None, **source: Any) -> dataset_pb2.Import:
        return await self.stub.ImportDataset(
            dataset_pb2.ImportDatasetRequest(request_id=request_id or new_id(), display_name="Shapes", **source),
            metadata=self.metadata,
        )

    async def get_import(self, import_id: str) -> dataset_pb2.Import:
        return await self.stub.GetImport(dataset_pb2.GetImportRequest(import_id=import_id), metadata=self.metadata)

    async def end(self, import_id: str, *, timeout_s: float = 60.0) -> dataset_pb2.Import:
        async def ended() -> dataset_pb2.Import | None:
            found = await self.get_import(import_id)
            return found if found.state in ENDED else None

        return await until(ended, timeout_s=timeout_s)

    async def import_bytes(self, archive: bytes, **options: Any) -> dataset_pb2.Import:
        return await self.end((await self.start(upload_id=await self.upload(archive), **options)).import_id)

    async def import_path(self, path: str, **options: Any) -> dataset_pb2.Import:
        return await self.end((await self.start(store_path=path, **options)).import_id)

    async def version(self, dataset_version_id: str) -> dataset_pb2.DatasetVersion:
        return await self.stub.GetDatasetVersion(
            dataset_pb2.GetDatasetVersionRequest(dataset_version_id=dataset_version_id), metadata=self.metadata
        )

    async def versions(self, page_size: int = 0, page_token: str = "") -> dataset_pb2.ListDatasetVersionsResponse:
        return await self.stub.ListDatasetVersions(
            dataset_pb2.ListDatasetVersionsRequest(page_size=page_size, page_token=page_token), metadata=self.metadata
        )

    async def list_images(self, image_set_id: str, **options: Any) -> dataset_pb2.ListImagesResponse:
        return await self.stub.ListImages(
            dataset_pb2.ListImagesRequest(image_set_id=image_set_id, **options), metadata=self.metadata
        )

    async def export(self, dataset_version_id: str, *, include_images: bool = False) -> bytes:
        request = dataset_pb2.ExportDatasetVersionRequest(
            dataset_version_id=dataset_version_id, include_images=include_images
        )
        return b"".join([piece.data async for piece in self.stub.ExportDatasetVersion(request, metadata=self.metadata)])

    async def create_draft(
        self, dataset_version_id: str, *, request_id: str | None = None, **options: Any
    ) -> dataset_pb2.Draft:
        request = dataset_pb2.CreateDraftRequest(
            request_id=request_id or new_id(),
            dataset_version_id=dataset_version_id,
            display_name="Mine",
            **options,
        )
        return await self.stub.CreateDraft(request, metadata=self.metadata)

    async def get_draft(self, draft_id: str) -> dataset_pb2.Draft:
        return await self.stub.GetDraft(dataset_pb2.GetDraftRequest(draft_id=draft_id), metadata=self.metadata)

    async def save(
        self, draft_id: str, image: dataset_pb2.ListedImage, *boxes: tuple[str, float, float, float, float], **more: Any
    ) -> dataset_pb2.ListedImage:
        request = dataset_pb2.SaveLabelsRequest(
            draft_id=draft_id,
            image_id=image.image_id,
            revision=image.revision,
            boxes=[
                dataset_pb2.LabelledBox(class_name=name, x1=x1, y1=y1, x2=x2, y2=y2) for name, x1, y1, x2, y2 in boxes
            ],
            **more,
        )
        return await self.stub.SaveLabels(request, metadata=self.metadata)

    def manifest(self, version: dataset_pb2.DatasetVersion) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.store / version.manifest_key).read_bytes())
        return found


def client(channel: grpc.aio.Channel, tokens: Tokens, account_id: str, store: Path) -> Client:
    stub = dataset_pb2_grpc.DatasetServiceStub(channel)
    return Client(stub, tokens.metadata(Role.EDITOR, account_id), account_id, store)


def zipped(folder: Path) -> bytes:
    """A folder as an archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return out.getvalue()


def archive_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def coco_files(count: int, *, seed: int = 1, side: int = 64) -> dict[str, bytes]:
    """`count` small pictures of noise, each with one box, every third of a second class and every other with an area
    of its own, 150.5 of the box's 200."""
    rng = np.random.default_rng(seed)
    files: dict[str, bytes] = {}
    images, annotations = [], []
    for number in range(1, count + 1):
        pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
        files[f"images/{number}.png"] = cv2.imencode(".png", pixels)[1].tobytes()
        images.append({"id": number, "file_name": f"{number}.png", "width": side, "height": side})
        area = {"area": 150.5} if number % 2 else {}
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1 + (number % 3 == 0), "bbox": [1, 2, 10, 20], **area}
        )
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    return files | {"annotations.json": json.dumps(document).encode()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def refusal(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Status and reason."""
    return error.code().name, from_rpc(error).reason
