"""One request to a deployment: may it, does it serve, is the image one, and then Triton's answer.

Predict and KServe v2 are two front doors to this. What goes wrong is a DomainError here; the names that things have
inside Triton, and its own words about its state, stay inside.
"""

import asyncio
import random
import re
import time
from collections import Counter as CountOf
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar
from uuid import UUID

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram
from tritonclient.grpc import service_pb2 as pb

from saucer.lib.auth import current
from saucer.lib.errors import (
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from saucer.lib.rounds import INTERRUPTIONS
from saucer.publishing.domain import Deployment, Version
from saucer.publishing.fleet import Fleet
from saucer.publishing.instances import Instance
from saucer.publishing.limits import Limits
from saucer.publishing.placement import model_name
from saucer.publishing.service import Deployments
from saucer.publishing.traffic import Piece, Traffic
from saucer.publishing.triton import INFER_S, Boxes, InferRefused, ModelFailed, TritonClient, TritonUnavailable
from saucer.serving.decode import MAX_PIXELS
from saucer.serving.errors import UnreadableImage
from saucer.serving.exif import SIDEWAYS, orientation
from saucer.serving.header import refuse_many_scans, stated_size

# Requests of one deployment, and of all, that are with Triton at once in this process; one more is RESOURCE_EXHAUSTED
# at once: waiting in Triton's queue would only make everybody's answers late. Those of an account are at most half of
# what the others leave, so that some places are left for one more.
MAX_IN_FLIGHT = 32
MAX_IN_FLIGHT_TOTAL = 128
# An encoded image, as publishing.proto has it too; a larger one is INVALID_ARGUMENT.
MAX_IMAGE_BYTES = 20 * 1024 * 1024
# For this long a deployment that answers is not looked up again; one that stops answers for that much longer at most.
KNOWN_S = 0.5
# A place where a request failed is asked last for so long; by then it is known whether it serves.
AVOID_S = 5.0
# Deployments remembered; above it all are looked up anew.
MAX_KNOWN = 10_000
# Between two times at which it is stored which deployments were asked.
TELL_USE_S = 1.0
# Between two looks for pieces of traffic that are over.
TELL_TRAFFIC_S = 2.0
# A process that ends waits so long for PostgreSQL to take its last pieces.
LAST_TRAFFIC_S = 3.0

log = structlog.get_logger()
requests_total = Counter("saucer_publishing_requests_total", "Requests to deployments by outcome", ["outcome"])
request_seconds = Histogram(
    "saucer_publishing_request_seconds",
    "Duration of requests to deployments by outcome",
    ["outcome"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10),
)


T = TypeVar("T")


class Place(NamedTuple):
    """Where a version answers, in Triton's words."""

    triton_id: str
    name: str
    start: str


# The client of a place, the place, and how long it may take.
Infer = Callable[[TritonClient, Place, float], Awaitable[T]]


@dataclass(frozen=True)
class Side:
    """A version of a deployment, and where it answers."""

    version: Version
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Prediction:
    """Everything above the model's low floor; width and height of the upright image in pixels.

    In columns, as Triton answers: an object for each of three hundred boxes would cost more than all else here.
    """

    found: Boxes
    width: int
    height: int
    # That answered.
    version: Version

    def above_threshold(self) -> NDArray[np.bool_]:
        """Whether each box, [n], is at or above its class's threshold, as evaluation counts it."""
        thresholds = dict(self.version.thresholds)
        of_class = np.array([thresholds[name] for name in self.version.classes], np.float32)
        return self.found.scores >= of_class[self.found.labels]


@dataclass(frozen=True)
class Query:
    """A KServe request as Triton gets it, but for the name; and its images."""

    request: pb.ModelInferRequest
    images: tuple[bytes, ...]


@dataclass
class Asked:
    """A request on its way: whose monitoring it belongs to, and whether it is counted there."""

    deployment_id: str
    # 0: it is not known yet to be a deployment that the caller may see.
    version_number: int = 0
    counted: bool = False

    def meet(self, deployment: Deployment, side: Side) -> None:
        """The caller may see it, and this side is to answer."""
        self.deployment_id, self.version_number = deployment.deployment_id, side.version.number


class Endpoint:
    """What is between a client and Triton."""

    def __init__(self, deployments: Deployments, fleet: Fleet, limits: Limits) -> None:
        self._limits = limits
        # Deployments that were asked since they were last looked at here.
        self._used: set[str] = set()
        self._traffic = Traffic()
        self._deployments = deployments
        self._fleet = fleet
        self._in_flight: CountOf[str] = CountOf()
        self._in_flight_of: CountOf[str] = CountOf()  # by account
        # By place: requests that are with it, and when one last failed there.
        self._busy: CountOf[Place] = CountOf()
        self._failed_at_s: dict[Place, float] = {}
        self._known: dict[str, tuple[float, Deployment]] = {}

    def admit(self) -> None:
        """A call that asks no model: one request to the token's limits. Raises ResourceExhaustedError: RATE_LIMITED."""
        self._limits.take(current().token_id, 0, time.monotonic())

    async def predict(self, deployment_id: str, image: bytes, timeout_s: float | None) -> Prediction:
        """Boxes on one image. `timeout_s` is what is left of the caller's deadline.

        Raises:
            NotFoundError: another account's too. FailedPreconditionError: NOT_ACTIVE, naming the state.
            InvalidArgumentError: IMAGE_REFUSED. ResourceExhaustedError: TOO_MANY_REQUESTS,
                RATE_LIMITED. UnavailableError: NOT_SERVING.
        """

        async def infer(triton: TritonClient, place: Place, seconds: float) -> Boxes:
            return await triton.infer(place.name, image, place.start, seconds)

        async with self._measured(deployment_id) as asked:
            self._limits.take(current().token_id, len(image), time.monotonic())
            deployment = await self.find(deployment_id)
            side = choose(deployment)
            asked.meet(deployment, side)
            _need_answers(deployment)
            async with self._placed(deployment):
                width, height = upright_size(image)
                found, version = await self._send(deployment, side, infer, timeout_s, asked, named=False)
            return Prediction(found, width, height, version)

    async def infer(
        self, name: str, number: str, size_bytes: int, read: Callable[[], Query], timeout_s: float | None
    ) -> pb.ModelInferResponse:
        """The answer to a KServe request of a deployment, and of one version of it, and no other, if a number is given.

        It is a request of its size to the token's limits, and each image above one another: so one that `read` refuses
        is counted too. Raises as predict() does, and as find_side() and `read`.
        """

        async with self._measured(name) as asked:
            self._limits.take(current().token_id, size_bytes, time.monotonic())
            query = read()
            request = query.request
            self._limits.owe(current().token_id, max(0, len(query.images) - 1))

            async def infer(triton: TritonClient, place: Place, seconds: float) -> pb.ModelInferResponse:
                request.model_name, request.model_version = place.name, place.start
                return await triton.forward(request, seconds)

            deployment, named = await self.find_side(name, number)
            side = named or choose(deployment)
            asked.meet(deployment, side)
            _need_answers(deployment)
            async with self._placed(deployment):
                for image in query.images:
                    upright_size(image)
                    # It takes a while, in which nobody else is served.
                    await asyncio.sleep(0)
                answer, version = await self._send(deployment, side, infer, timeout_s, asked, named=named is not None)
        answer.model_name, answer.model_version = deployment.deployment_id, str(version.number)
        return answer

    async def _send(
        self, deployment: Deployment, side: Side, infer: Infer[T], timeout_s: float | None, asked: Asked, *, named: bool
    ) -> tuple[T, Version]:
        """Asks one instance of a side; where it fails, each of the others in turn: an inference changes nothing.

        Those of the other side, if it has a share, are the last: what becomes of one must not fail a request. But
        whoever has named a version is answered by no other.
        """
        number = side.version.number
        self._used.add(deployment.deployment_id)
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        tried: set[Place] = set()
        choice = self._choose_place(deployment, number, named, tried)
        while choice is not None:
            version, place = choice
            tried.add(place)
            asked.counted = True
            try:
                return await self._ask(deployment, version, place, infer, _deadline(ends_s)), version
            except (ModelFailed, TritonUnavailable) as error:
                if _deadline(ends_s) == 0.0:  # the caller's, which says nothing of the instance
                    raise
                self._avoid(place)
                self._known.pop(deployment.deployment_id, None)
                deployment = await self.answering(deployment.deployment_id)
                choice = self._choose_place(deployment, number, named, tried)
                if choice is None:
                    raise
                log.info("infer_elsewhere", deployment_id=deployment.deployment_id, error=error.reason)
        raise TritonUnavailable("no instance of it serves")

    def _choose_place(
        self, deployment: Deployment, version_number: int, named: bool, tried: Collection[Place]
    ) -> tuple[Version, Place] | None:
        """The one with fewest requests of this process, in an order of chance; None: all were tried.

        Of the wanted version if it can be; but one where a request has just failed comes last.
        """
        now_s = time.monotonic()

        def burden(choice: tuple[Version, Place]) -> tuple[bool, bool, int, float]:
            version, place = choice
            failed = now_s - self._failed_at_s.get(place, -AVOID_S) < AVOID_S
            return (failed, version.number != version_number, self._busy[place], random.random())

        asked = [
            side
            for side in sides(deployment)
            if (side.version.number == version_number if named else _takes_traffic(deployment, side))
        ]
        choices = [(side.version, place) for side in asked for place in side.places if place not in tried]
        return min(choices, key=burden, default=None)

    def _avoid(self, place: Place) -> None:
        if len(self._failed_at_s) >= MAX_KNOWN:
            self._failed_at_s.clear()
        self._failed_at_s[place] = time.monotonic()

    async def _ask(self, deployment: Deployment, version: Version, place: Place, infer: Infer[T], seconds: float) -> T:
        begun_s, failed = time.perf_counter(), True
        self._busy[place] += 1
        try:
            answer = await infer(await self._fleet.client(place.triton_id), place, seconds)
            failed = False
        finally:
            self._busy[place] -= 1
            if not self._busy[place]:
                del self._busy[place]
            duration_s = time.perf_counter() - begun_s
            self._traffic.record(deployment.deployment_id, version.number, duration_s, failed, datetime.now(UTC))
        return answer

    async def tell_traffic(self, replica: str) -> None:
        """Stores the pieces of what was counted that have ended. Raises what PostgreSQL raises, and keeps them then."""
        await self._store(replica, self._traffic.take_ended(datetime.now(UTC)))

    async def tell_last_traffic(self, replica: str) -> None:
        """Stores all of what was counted, once no more requests come; what is not stored within its limit is lost."""
        try:
            async with asyncio.timeout(LAST_TRAFFIC_S):
                await self._store(replica, self._traffic.take_all())
        except INTERRUPTIONS as error:
            log.warning("traffic_lost", error=repr(error))

    async def _store(self, replica: str, pieces: Sequence[Piece]) -> None:
        try:
            await self._deployments.monitoring.store_pieces(replica, pieces)
        except (*INTERRUPTIONS, asyncio.CancelledError):
            # They may be stored all the same, and then stay as they are there.
            self._traffic.put_back(pieces)
            raise

    async def tell_use(self) -> None:
        """Says which deployments were asked, on which their idle stop depends. Raises likewise."""
        used, self._used = self._used, set()
        try:
            await self._deployments.serving.used(used)
        except INTERRUPTIONS:
            self._used |= used
            raise

    async def answering(self, deployment_id: str) -> Deployment:
        """Raises NotFoundError, FailedPreconditionError naming the state."""
        deployment = await self.find(deployment_id)
        _need_answers(deployment)
        return deployment

    async def find_side(self, name: str, number: str) -> tuple[Deployment, Side | None]:
        """A deployment by what KServe calls a name, and the version of it that is asked for; None: whichever serves.

        Raises NotFoundError: deployment or version.
        """
        try:
            # As PostgreSQL writes it: Python reads more spellings of one.
            deployment_id = str(UUID(name))
        except ValueError as error:
            raise NotFoundError("deployment", name[:100]) from error
        deployment = await self.find(deployment_id)
        if not number:
            return deployment, None
        for side in sides(deployment):
            if number == str(side.version.number):
                return deployment, side
        raise NotFoundError("deployment_version", number[:100])

    async def find(self, deployment_id: str) -> Deployment:
        """A deployment, as it was at most KNOWN_S ago if it answered then. Raises NotFoundError."""
        looked_up_s, deployment = self._known.get(deployment_id, (0.0, None))
        if deployment is not None and time.monotonic() - looked_up_s < KNOWN_S:
            current().own("deployment", deployment_id, deployment.account_id)
            return deployment
        deployment = await self._deployments.get(deployment_id)
        self._known.pop(deployment_id, None)
        if deployment.answers:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[deployment_id] = (time.monotonic(), deployment)
        return deployment

    @asynccontextmanager
    async def _placed(self, deployment: Deployment) -> AsyncIterator[None]:
        """Takes a place among the requests in flight, and turns Triton's errors into ours."""
        key, owner = deployment.deployment_id, deployment.account_id
        of_account = self._in_flight_of[owner]
        left_by_others = MAX_IN_FLIGHT_TOTAL - (self._in_flight_of.total() - of_account)
        if self._in_flight[key] >= MAX_IN_FLIGHT or of_account >= left_by_others // 2:
            raise ResourceExhaustedError(
                "TOO_MANY_REQUESTS",
                f"{MAX_IN_FLIGHT} requests of one deployment, or of one account half of what the others leave of "
                f"{MAX_IN_FLIGHT_TOTAL}, are in progress; try again later.",
            )
        self._in_flight[key] += 1
        self._in_flight_of[owner] += 1
        try:
            yield
        except InferRefused as error:
            raise InvalidArgumentError("IMAGE_REFUSED", _outer(error.reason, key)) from error
        except (ModelFailed, TritonUnavailable) as error:
            self._known.pop(key, None)
            log.warning("infer_failed", deployment_id=key, error=error.reason)
            # It may have been stopped a moment ago: then its state says more.
            await self.answering(key)
            raise UnavailableError("NOT_SERVING", "The model does not answer now; it is being brought back.") from error
        finally:
            for counter, name in ((self._in_flight, key), (self._in_flight_of, owner)):
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]

    @asynccontextmanager
    async def _measured(self, deployment_id: str) -> AsyncIterator[Asked]:
        """Counts a request by its outcome, here and in its deployment's monitoring."""
        asked = Asked(deployment_id)
        started_s = time.perf_counter()
        outcome = "CANCELLED"
        try:
            yield asked
            outcome = "OK"
        except DomainError as error:
            outcome = error.reason
            raise
        except Exception:  # whatever it is, it is counted, and goes on to whoever answers for it
            outcome = "INTERNAL"
            raise
        finally:
            requests_total.labels(outcome).inc()
            request_seconds.labels(outcome).observe(time.perf_counter() - started_s)
            if outcome != "OK" and not asked.counted:
                self._count_refusal(asked)

    def _count_refusal(self, asked: Asked) -> None:
        """Of a request that no model was asked; of one that was not even looked up, if a former one was."""
        number = asked.version_number
        _, known = self._known.get(asked.deployment_id, (0.0, None))
        if not number and known is not None and current().may_see(known.account_id):
            number = known.version.number
        if number:
            self._traffic.refuse(asked.deployment_id, number, datetime.now(UTC))


def sides(deployment: Deployment) -> list[Side]:
    """What answers: the version that serves, and a candidate that is ready."""
    found = [_side(deployment, deployment.version, deployment.own_instances)]
    candidate = deployment.candidate
    if candidate is not None and candidate.ready:
        found.append(_side(deployment, candidate.version, deployment.candidate_instances))
    return found


def _takes_traffic(deployment: Deployment, side: Side) -> bool:
    """Whether it may answer whoever names no version."""
    return deployment.shared or side.version.number == deployment.version.number


def choose(deployment: Deployment) -> Side:
    """The side that a request goes to: the candidate's share is a matter of chance."""
    candidate = deployment.candidate
    # Not a secret: whoever guesses it gets an answer from the other version.
    chosen = candidate is not None and candidate.ready and random.random() * 100 < candidate.percent
    return sides(deployment)[chosen]


def _side(deployment: Deployment, version: Version, instances: Sequence[Instance]) -> Side:
    name, start = model_name(deployment.deployment_id, version.number), str(deployment.start_number)
    return Side(version, tuple(Place(item.triton_id, name, start) for item in instances if item.serving))


def _outer(reason: str, deployment_id: str) -> str:
    """Triton's sentence with the name that the client knows."""
    return re.sub(rf"deployment_{deployment_id}_\d+", deployment_id, reason)


def _need_answers(deployment: Deployment) -> None:
    """Raises FailedPreconditionError naming the state."""
    if not deployment.answers:
        raise FailedPreconditionError(
            "NOT_ACTIVE",
            f"The deployment is {deployment.state}; only an ACTIVE one answers.",
            state=deployment.state,
        )


def _deadline(ends_s: float | None) -> float:
    """Seconds that one try may take, by what is left of the caller's deadline on the monotonic clock."""
    return INFER_S if ends_s is None else max(0.0, min(ends_s - time.monotonic(), INFER_S))


def upright_size(image: bytes) -> tuple[int, int]:
    """Width and height in pixels as a viewer shows it, without decoding a pixel.

    Raises InvalidArgumentError IMAGE_REFUSED for what is no image, or one of more than MAX_PIXELS, MAX_IMAGE_BYTES or
    MAX_SCANS.
    """
    if len(image) > MAX_IMAGE_BYTES:
        raise _refused(f"the image has {len(image)} bytes, more than {MAX_IMAGE_BYTES}")
    try:
        width, height = stated_size(image)
        refuse_many_scans(image)
    except UnreadableImage as error:
        raise _refused(error.reason) from error
    if width * height > MAX_PIXELS:
        raise _refused(f"the image has {width} × {height} pixels, more than {MAX_PIXELS}")
    return (height, width) if orientation(image) in SIDEWAYS else (width, height)


def _refused(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError("IMAGE_REFUSED", f"IMAGE: {reason}")
