"""Messages to use cases and back; nothing else."""

from collections.abc import AsyncIterator

from saucer.lib.auth import current
from saucer.lib.clock import from_timestamp
from saucer.lib.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from saucer.lib.grpc_server import MAX_MESSAGE_BYTES, Context, Servicer
from saucer.lib.grpc_status import to_status
from saucer.lib.ids import derived_id
from saucer.lib.paging import read_page
from saucer.publishing.endpoint import Endpoint, Prediction
from saucer.publishing.fleet import Fleet
from saucer.publishing.in_order import in_order
from saucer.publishing.messages import (
    deployment_message,
    event_message,
    instances_message,
    log_line_message,
    read_billing_mode,
    read_form,
    read_thresholds,
    read_triton,
    record_message,
    sample_message,
    triton_message,
    version_message,
)
from saucer.publishing.service import Deployments
from saucer.publishing.v1 import publishing_pb2, publishing_pb2_grpc

# Images of one stream that are in progress, and their bytes, so that eight large ones do not take eight times the room
# that the stream holds; further ones are not read meanwhile.
STREAM_IN_FLIGHT = 8
STREAM_BYTES = MAX_MESSAGE_BYTES
# Answered for their image; any other error would meet each that follows, and ends the stream.
OF_ONE_IMAGE = (InvalidArgumentError, ResourceExhaustedError, UnavailableError)


def servicer(deployments: Deployments, endpoint: Endpoint, fleet: Fleet) -> Servicer:
    """What main.py serves."""
    return Servicer(
        _PublishingRpc(deployments, endpoint, fleet),
        publishing_pb2_grpc.add_PublishingServiceServicer_to_server,
        publishing_pb2.DESCRIPTOR.services_by_name["PublishingService"],
    )


class _PublishingRpc(publishing_pb2_grpc.PublishingServiceServicer):
    def __init__(self, deployments: Deployments, endpoint: Endpoint, fleet: Fleet) -> None:
        self._deployments = deployments
        self._endpoint = endpoint
        self._fleet = fleet

    async def CreateDeployment(
        self, request: publishing_pb2.CreateDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        account_id = current().account(request.account_id)
        deployment = await self._deployments.starts.create(
            request.request_id,
            account_id,
            derived_id("deployment", account_id, request.request_id),
            read_form(request),
        )
        return deployment_message(deployment)

    async def GetDeployment(
        self, request: publishing_pb2.GetDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        return deployment_message(await self._deployments.get(request.deployment_id))

    async def ListDeployments(
        self, request: publishing_pb2.ListDeploymentsRequest, context: Context
    ) -> publishing_pb2.ListDeploymentsResponse:
        account_id = current().account(request.account_id)
        page = read_page(request)
        deployments = await self._deployments.list_deployments(
            account_id,
            after=page.after_moment,
            limit=page.limit,
        )
        shown, following = page.cut(deployments, lambda row: (row.created_at, row.deployment_id))
        return publishing_pb2.ListDeploymentsResponse(
            deployments=[deployment_message(deployment) for deployment in shown],
            next_page_token=following,
        )

    async def StopDeployment(
        self, request: publishing_pb2.StopDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        return deployment_message(await self._deployments.stop(request.request_id, request.deployment_id))

    async def StartDeployment(
        self, request: publishing_pb2.StartDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        deployment = await self._deployments.starts.start(
            request.request_id,
            request.deployment_id,
            read_billing_mode(request.billing_mode) if request.billing_mode else None,
            request.resource_group_id,
        )
        return deployment_message(deployment)

    async def DeleteDeployment(
        self, request: publishing_pb2.DeleteDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        return deployment_message(await self._deployments.delete(request.request_id, request.deployment_id))

    async def UpdateDeployment(
        self, request: publishing_pb2.UpdateDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        deployment = await self._deployments.versions.update(
            request.request_id,
            request.deployment_id,
            request.model_id,
            read_thresholds(request.thresholds),
            request.percent,
        )
        return deployment_message(deployment)

    async def RollBackDeployment(
        self, request: publishing_pb2.RollBackDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        deployment = await self._deployments.versions.roll_back(
            request.request_id, request.deployment_id, request.version_number, request.percent
        )
        return deployment_message(deployment)

    async def SplitDeployment(
        self, request: publishing_pb2.SplitDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        versions = self._deployments.versions
        deployment = await versions.split(
            request.request_id, request.deployment_id, request.version_number, request.percent
        )
        return deployment_message(deployment)

    async def PromoteCandidate(
        self, request: publishing_pb2.PromoteCandidateRequest, context: Context
    ) -> publishing_pb2.Deployment:
        versions = self._deployments.versions
        deployment = await versions.promote(request.request_id, request.deployment_id, request.version_number)
        return deployment_message(deployment)

    async def AbandonCandidate(
        self, request: publishing_pb2.AbandonCandidateRequest, context: Context
    ) -> publishing_pb2.Deployment:
        versions = self._deployments.versions
        deployment = await versions.abandon(request.request_id, request.deployment_id, request.version_number)
        return deployment_message(deployment)

    async def ListDeploymentVersions(
        self, request: publishing_pb2.ListDeploymentVersionsRequest, context: Context
    ) -> publishing_pb2.ListDeploymentVersionsResponse:
        page = read_page(request)
        found = await self._deployments.versions.list_versions(
            request.deployment_id, before=page.after_number, limit=page.limit
        )
        shown, following = page.cut(found, lambda row: (row[0].number,))
        return publishing_pb2.ListDeploymentVersionsResponse(
            versions=[version_message(*item) for item in shown],
            next_page_token=following,
        )

    async def ListUpdateRecords(
        self, request: publishing_pb2.ListUpdateRecordsRequest, context: Context
    ) -> publishing_pb2.ListUpdateRecordsResponse:
        page = read_page(request)
        found = await self._deployments.versions.list_records(
            request.deployment_id, before=page.after_number, limit=page.limit
        )
        shown, following = page.cut(found, lambda row: (row.number,))
        return publishing_pb2.ListUpdateRecordsResponse(
            records=[record_message(record) for record in shown],
            next_page_token=following,
        )

    async def ListInstances(
        self, request: publishing_pb2.ListInstancesRequest, context: Context
    ) -> publishing_pb2.ListInstancesResponse:
        deployment = await self._deployments.get(request.deployment_id)
        tritons = await self._deployments.tritons.list_tritons()
        return instances_message(deployment, {triton.triton_id for triton, _ in tritons if triton.live})

    async def ListTrafficSamples(
        self, request: publishing_pb2.ListTrafficSamplesRequest, context: Context
    ) -> publishing_pb2.ListTrafficSamplesResponse:
        pieces = await self._deployments.monitoring.list_pieces(
            request.deployment_id,
            from_timestamp(request.start_time) if request.HasField("start_time") else None,
            from_timestamp(request.end_time) if request.HasField("end_time") else None,
        )
        return publishing_pb2.ListTrafficSamplesResponse(samples=[sample_message(*piece) for piece in pieces])

    async def ListDeploymentEvents(
        self, request: publishing_pb2.ListDeploymentEventsRequest, context: Context
    ) -> publishing_pb2.ListDeploymentEventsResponse:
        events = await self._deployments.monitoring.list_events(request.deployment_id)
        return publishing_pb2.ListDeploymentEventsResponse(events=[event_message(event) for event in events])

    async def ListDeploymentLogLines(
        self, request: publishing_pb2.ListDeploymentLogLinesRequest, context: Context
    ) -> publishing_pb2.ListDeploymentLogLinesResponse:
        page = read_page(request)
        found = await self._deployments.monitoring.list_lines(
            request.deployment_id, before=page.after_number, limit=page.limit
        )
        shown, following = page.cut(found, lambda row: (row.position,))
        return publishing_pb2.ListDeploymentLogLinesResponse(
            lines=[log_line_message(kept) for kept in shown],
            next_page_token=following,
        )

    async def RegisterTriton(
        self, request: publishing_pb2.RegisterTritonRequest, context: Context
    ) -> publishing_pb2.Triton:
        return triton_message(await self._deployments.tritons.register(read_triton(request)))

    async def DrainTriton(self, request: publishing_pb2.DrainTritonRequest, context: Context) -> publishing_pb2.Triton:
        return triton_message(await self._deployments.tritons.drain(request.triton_id, not request.undo))

    async def UnregisterTriton(
        self, request: publishing_pb2.UnregisterTritonRequest, context: Context
    ) -> publishing_pb2.Triton:
        held = await self._fleet.held(request.triton_id)
        return triton_message(await self._deployments.tritons.unregister(request.triton_id, held))

    async def ListTritons(
        self, request: publishing_pb2.ListTritonsRequest, context: Context
    ) -> publishing_pb2.ListTritonsResponse:
        tritons = await self._deployments.tritons.list_tritons()
        return publishing_pb2.ListTritonsResponse(tritons=[triton_message(triton, used) for triton, used in tritons])

    async def Predict(self, request: publishing_pb2.PredictRequest, context: Context) -> publishing_pb2.PredictResponse:
        return await self._predict(request.deployment_id, request.image, context)

    async def PredictStream(
        self,
        requests: AsyncIterator[publishing_pb2.PredictStreamRequest | InvalidArgumentError],
        context: Context,
    ) -> AsyncIterator[publishing_pb2.PredictStreamResponse]:
        async def answer(
            request: publishing_pb2.PredictStreamRequest | InvalidArgumentError,
        ) -> publishing_pb2.PredictStreamResponse:
            try:
                if isinstance(request, InvalidArgumentError):
                    raise request
                prediction = await self._predict(request.deployment_id, request.image, context)
            except OF_ONE_IMAGE as error:
                return publishing_pb2.PredictStreamResponse(error=to_status("PredictStream", error))
            return publishing_pb2.PredictStreamResponse(prediction=prediction)

        number = 0
        async for response in in_order(requests, answer, STREAM_IN_FLIGHT, _image_bytes, STREAM_BYTES):
            number += 1
            response.request_number = number
            yield response

    async def _predict(self, deployment_id: str, image: bytes, context: Context) -> publishing_pb2.PredictResponse:
        return prediction_message(await self._endpoint.predict(deployment_id, image, context.time_remaining()))


def _image_bytes(request: publishing_pb2.PredictStreamRequest | InvalidArgumentError) -> int:
    return 0 if isinstance(request, InvalidArgumentError) else len(request.image)


def prediction_message(prediction: Prediction) -> publishing_pb2.PredictResponse:
    """What Predict answers. Made in place and by field: by keywords, and copied, three hundred boxes take twice as
    long.
    """
    found, classes = prediction.found, prediction.version.classes
    message = publishing_pb2.PredictResponse(
        width=prediction.width,
        height=prediction.height,
        version_number=prediction.version.number,
        highest_score=found.scores.max(initial=0.0),
    )
    columns = (*found.boxes.T, found.scores, found.labels, prediction.above_threshold())
    add = message.detections.add
    for x1, y1, x2, y2, score, label, above_threshold in zip(*(column.tolist() for column in columns), strict=True):
        detection = add()
        detection.class_name = classes[label]
        detection.score = score
        detection.x1 = x1
        detection.y1 = y1
        detection.x2 = x2
        detection.y2 = y2
        detection.above_threshold = above_threshold
    return message
