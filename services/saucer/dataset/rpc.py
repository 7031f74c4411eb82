"""Messages to use cases and back; nothing else."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from saucer.dataset.domain import ImportRequest, SourceFormat
from saucer.dataset.messages import (
    draft_message,
    image_message,
    import_message,
    label_kind_of,
    read_box,
    root_message,
    source_format_of,
    upload_message,
    version_message,
)
from saucer.dataset.service import Datasets
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.lib.auth import Role, current
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.ids import derived_id
from saucer.lib.paging import read_page


def servicer(datasets: Datasets) -> Servicer:
    """What main.py serves."""
    return Servicer(
        _DatasetRpc(datasets),
        dataset_pb2_grpc.add_DatasetServiceServicer_to_server,
        dataset_pb2.DESCRIPTOR.services_by_name["DatasetService"],
    )


class _DatasetRpc(dataset_pb2_grpc.DatasetServiceServicer):
    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets

    async def CreateUpload(self, request: dataset_pb2.CreateUploadRequest, context: Context) -> dataset_pb2.Upload:
        account_id = current().account(request.account_id)
        upload = await self._datasets.uploads.create(
            derived_id("upload", account_id, request.request_id), account_id, request.size_bytes
        )
        return upload_message(upload)

    async def GetUpload(self, request: dataset_pb2.GetUploadRequest, context: Context) -> dataset_pb2.Upload:
        if not request.HasField("chunks_from_bytes"):
            return upload_message(await self._datasets.uploads.get(request.upload_id))
        return upload_message(
            *await self._datasets.uploads.get_with_chunks(request.upload_id, request.chunks_from_bytes)
        )

    async def WriteUpload(self, request: dataset_pb2.WriteUploadRequest, context: Context) -> dataset_pb2.Upload:
        upload = await self._datasets.uploads.write(request.upload_id, request.offset_bytes, request.data)
        return upload_message(upload)

    async def ImportDataset(self, request: dataset_pb2.ImportDatasetRequest, context: Context) -> dataset_pb2.Import:
        account_id = current().account(request.account_id)
        work = await self._datasets.imports.create(
            derived_id("import", account_id, request.request_id),
            ImportRequest(
                account_id,
                request.display_name,
                request.upload_id or None,
                request.store_path or None,
                request.split_seed,
                SourceFormat.DRAFT if request.draft_id else source_format_of(request.source_format),
                request.draft_id or None,
                request.split_again,
                request.mapped_root or None,
            ),
        )
        return import_message(work)

    async def MapRoot(self, request: dataset_pb2.MapRootRequest, context: Context) -> dataset_pb2.MappedRoot:
        return root_message(await self._datasets.roots.map(request.account_id, request.name, request.url))

    async def UnmapRoot(self, request: dataset_pb2.UnmapRootRequest, context: Context) -> dataset_pb2.MappedRoot:
        return root_message(await self._datasets.roots.unmap(request.account_id, request.name))

    async def ListMappedRoots(
        self, request: dataset_pb2.ListMappedRootsRequest, context: Context
    ) -> dataset_pb2.ListMappedRootsResponse:
        roots = await self._datasets.roots.list(current().account(request.account_id))
        if current().role is not Role.ADMINISTRATOR:
            roots = [replace(root, url="") for root in roots]
        return dataset_pb2.ListMappedRootsResponse(roots=[root_message(root) for root in roots])

    async def GetImport(self, request: dataset_pb2.GetImportRequest, context: Context) -> dataset_pb2.Import:
        return import_message(await self._datasets.imports.get(request.import_id))

    async def GetDatasetVersion(
        self, request: dataset_pb2.GetDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        return version_message(await self._datasets.versions.get(request.dataset_version_id))

    async def ListDatasetVersions(
        self, request: dataset_pb2.ListDatasetVersionsRequest, context: Context
    ) -> dataset_pb2.ListDatasetVersionsResponse:
        account_id = current().account(request.account_id)
        page = read_page(request)
        versions = await self._datasets.versions.list_versions(account_id, after=page.after_moment, limit=page.limit)
        shown, following = page.cut(versions, lambda row: (row.created_at, row.dataset_version_id))
        return dataset_pb2.ListDatasetVersionsResponse(
            dataset_versions=[version_message(version) for version in shown],
            next_page_token=following,
        )

    async def ListImageReads(
        self, request: dataset_pb2.ListImageReadsRequest, context: Context
    ) -> dataset_pb2.ListImageReadsResponse:
        page = read_page(request)
        found = await self._datasets.labelling.image_reads.list_days(
            current().account(request.account_id), before=page.after_day, limit=page.limit
        )
        shown, following = page.cut(found, lambda row: (row[0],))
        return dataset_pb2.ListImageReadsResponse(
            image_reads=[
                dataset_pb2.ImageReads(day=day.isoformat(), reads=reads, bytes=size) for day, reads, size in shown
            ],
            next_page_token=following,
        )

    async def ListImages(
        self, request: dataset_pb2.ListImagesRequest, context: Context
    ) -> dataset_pb2.ListImagesResponse:
        page = read_page(request)
        image_set, found, more = await self._datasets.labelling.list_images(
            request.image_set_id,
            labelled=request.labelled if request.HasField("labelled") else None,
            split=request.split or None,
            class_name=request.class_name or None,
            after=page.after_number or 0,
            limit=page.size,
            include_images=request.include_images,
        )
        # A thousand images may have tens of thousands of boxes.
        images = await asyncio.to_thread(lambda: [image_message(image_set, image, data) for image, data in found])
        return dataset_pb2.ListImagesResponse(
            images=images, next_page_token=page.token([found[-1][0].place] if more else None)
        )

    async def ExportDatasetVersion(
        self, request: dataset_pb2.ExportDatasetVersionRequest, context: Context
    ) -> AsyncIterator[dataset_pb2.ExportedPiece]:
        pieces = self._datasets.labelling.export_version(
            request.dataset_version_id, include_images=request.include_images
        )
        async for piece in pieces:
            yield dataset_pb2.ExportedPiece(data=piece)

    async def CreateDraft(self, request: dataset_pb2.CreateDraftRequest, context: Context) -> dataset_pb2.Draft:
        account_id = current().account(request.account_id)
        draft = await self._datasets.labelling.create_draft(
            derived_id("draft", account_id, request.request_id),
            account_id,
            request.dataset_version_id,
            request.display_name,
            label_kind_of(request.label_kind),
            request.classes,
        )
        return draft_message(draft)

    async def GetDraft(self, request: dataset_pb2.GetDraftRequest, context: Context) -> dataset_pb2.Draft:
        return draft_message(await self._datasets.labelling.get_draft(request.draft_id))

    async def ListDrafts(
        self, request: dataset_pb2.ListDraftsRequest, context: Context
    ) -> dataset_pb2.ListDraftsResponse:
        account_id = current().account(request.account_id)
        page = read_page(request)
        drafts = await self._datasets.labelling.list_drafts(account_id, after=page.after_moment, limit=page.limit)
        shown, following = page.cut(drafts, lambda row: (row.created_at, row.draft_id))
        return dataset_pb2.ListDraftsResponse(
            drafts=[draft_message(draft) for draft in shown],
            next_page_token=following,
        )

    async def AddDraftClasses(self, request: dataset_pb2.AddDraftClassesRequest, context: Context) -> dataset_pb2.Draft:
        return draft_message(await self._datasets.labelling.add_classes(request.draft_id, request.classes))

    async def SaveLabels(self, request: dataset_pb2.SaveLabelsRequest, context: Context) -> dataset_pb2.ListedImage:
        draft, image = await self._datasets.labelling.save_labels(
            request.draft_id,
            request.image_id,
            request.revision,
            [read_box(box) for box in request.boxes],
            request.class_name,
        )
        return image_message(draft.image_set, image, b"")

    async def DeleteDraft(self, request: dataset_pb2.DeleteDraftRequest, context: Context) -> dataset_pb2.Draft:
        return draft_message(await self._datasets.labelling.delete_draft(request.draft_id))
