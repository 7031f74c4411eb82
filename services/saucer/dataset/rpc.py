"""Messages to use cases and back; nothing else."""

from datetime import datetime

from saucer.dataset.domain import ImportRequest
from saucer.dataset.messages import import_message, source_format_of, upload_message, version_message
from saucer.dataset.service import Datasets
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.lib.auth import current
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
        upload = await self._datasets.create_upload(
            derived_id("upload", account_id, request.request_id), account_id, request.size_bytes
        )
        return upload_message(upload)

    async def GetUpload(self, request: dataset_pb2.GetUploadRequest, context: Context) -> dataset_pb2.Upload:
        return upload_message(await self._datasets.get_upload(request.upload_id))

    async def WriteUpload(self, request: dataset_pb2.WriteUploadRequest, context: Context) -> dataset_pb2.Upload:
        upload = await self._datasets.write_upload(request.upload_id, request.offset_bytes, request.data)
        return upload_message(upload)

    async def ImportDataset(self, request: dataset_pb2.ImportDatasetRequest, context: Context) -> dataset_pb2.Import:
        account_id = current().account(request.account_id)
        work = await self._datasets.import_dataset(
            derived_id("import", account_id, request.request_id),
            ImportRequest(
                account_id,
                request.display_name,
                request.upload_id or None,
                request.store_path or None,
                request.split_seed,
                source_format_of(request.source_format),
            ),
        )
        return import_message(work)

    async def GetImport(self, request: dataset_pb2.GetImportRequest, context: Context) -> dataset_pb2.Import:
        return import_message(await self._datasets.get_import(request.import_id))

    async def GetDatasetVersion(
        self, request: dataset_pb2.GetDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        return version_message(await self._datasets.get_version(request.dataset_version_id))

    async def ListDatasetVersions(
        self, request: dataset_pb2.ListDatasetVersionsRequest, context: Context
    ) -> dataset_pb2.ListDatasetVersionsResponse:
        account_id = current().account(request.account_id)
        page = read_page(request)
        after = (datetime.fromisoformat(str(page.after[0])), str(page.after[1])) if page.after else None
        versions = await self._datasets.list_versions(account_id, after=after, limit=page.size + 1)
        shown = versions[: page.size]
        last = shown[-1] if len(versions) > page.size else None
        return dataset_pb2.ListDatasetVersionsResponse(
            dataset_versions=[version_message(version) for version in shown],
            next_page_token=page.token([last.created_at.isoformat(), last.dataset_version_id] if last else None),
        )
