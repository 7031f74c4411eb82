"""threshold_p99_ms, large_call_p99_ms, large_chart_ms: how long the service takes to answer, client and wire included.

The service is evaluation as it is wired, with PostgreSQL, NATS and files, and its client is in the same process.
"""

import gc
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import nats as nats_client

from saucer.evaluation.domain import DEFAULT_THRESHOLD
from saucer.evaluation.main import EvaluationSettings, wire
from saucer.evaluation.stored import MOST_POINTS
from saucer.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from saucer.lib import auth
from saucer.lib.ids import derived_id, new_id
from saucer.lib.objects import Objects
from saucer.lib.paging import DEFAULT_PAGE_SIZE, read_page
from saucer.lib.stream import ensure_stream
from saucer.local.servers import NatsServer, PostgresServer
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.bench._detections import LARGE_CLASSES, Split, large_split, split
from tests.bench.harness import LEAST_ROUNDS, Row, Say, percentile, row
from tests.support.events import event, publish
from tests.support.services import KEY_ID, Metadata, ServiceRunner, Tokens

REFERENCE_MS, LARGE_REFERENCE_MS = 10.0, 100.0
CALLS = 200
LARGE_CALLS = 100
CHARTS = ("PRECISION_RECALL", "CONFUSION_MATRIX", "SCORES")
SCORING_S = 600.0
MAX_BYTES = 64 * 1024**2


async def measure(folder: Path, say: Say) -> list[Row]:
    """`folder` takes the servers' data and the objects."""
    postgres, nats = PostgresServer(folder / "postgres", fast=True), NatsServer(folder / "nats")
    await postgres.start()
    await nats.start()
    try:
        (folder / "keys").mkdir()
        auth.generate_keys(folder / "keys" / "private.pem", folder / "keys" / "keys.json", KEY_ID)
        tokens = Tokens(folder / "keys")
        run = ServiceRunner(lambda: postgres.database(f"bench_{uuid4().hex}"), nats.uri, tokens)
        return await _measure(run, tokens, f"file://{folder / 'objects'}", say)
    finally:
        await nats.stop()
        await postgres.stop()


async def _measure(run: ServiceRunner, tokens: Tokens, store: str, say: Say) -> list[Row]:
    client = await nats_client.connect(run.nats_url)
    jetstream = client.jetstream()
    await ensure_stream(jetstream)
    async with run("evaluation", EvaluationSettings, wire, object_store_url=store) as running:
        account_id = new_id()
        metadata = tokens.metadata(auth.Role.VIEWER, account_id)
        options = [("grpc.max_receive_message_length", MAX_BYTES)]
        async with grpc.aio.insecure_channel(running.address, options=options) as channel:
            stub = evaluation_pb2_grpc.EvaluationServiceStub(channel)

            async def scored(made: Split) -> str:
                model = await _model(Objects(store), account_id, made)
                ended = training_events.RunEnded(model=model)
                await publish(jetstream, event(ended, "training", account_id, model.task_id, model.run_id))
                return await _succeeded(stub, metadata, derived_id("evaluation", model.model_id), say)

            # As lib/run.py does once a service is wired.
            gc.collect()
            gc.freeze()
            small = await _thresholds(stub, metadata, await scored(split(5_000, 80)), say)
            made = large_split()
            base_id, evaluation_id = await scored(made), await scored(made)
            large = await _every_call(stub, metadata, evaluation_id, base_id, made.classes[0], say)
            charts = await _new_charts(stub, metadata, evaluation_id, say)
    await client.close()
    return [
        row("threshold_p99_ms", "ms", "<= 1.0", small, [REFERENCE_MS] * LEAST_ROUNDS),
        row("large_call_p99_ms", "ms", "<= 1.0", large, [LARGE_REFERENCE_MS] * LEAST_ROUNDS),
        row("large_chart_ms", "ms", "<= 1.0", charts, [LARGE_REFERENCE_MS] * LEAST_ROUNDS),
    ]


async def _model(objects: Objects, account_id: str, made: Split) -> training_pb2.Model:
    model_id = new_id()
    prefix = f"system/{account_id}/{model_id}"
    model = training_pb2.Model(
        model_id=model_id,
        account_id=account_id,
        task_id=new_id(),
        run_id=new_id(),
        classes=made.classes,
        dataset_version_id=new_id(),
        manifest_key=f"{prefix}/manifest.json",
        manifest_sha256=await objects.put(f"{prefix}/manifest.json", made.manifest),
        image_prefix=f"system/{account_id}/images",
    )
    for name, data in (("detections_test.npz", made.test), ("detections_validation.npz", made.validation)):
        model.files.add(name=name, key=f"{prefix}/{name}", sha256=await objects.put(f"{prefix}/{name}", data))
    return model


async def _succeeded(
    stub: "evaluation_pb2_grpc.EvaluationServiceAsyncStub", metadata: Metadata, evaluation_id: str, say: Say
) -> str:
    """Waits for the scoring; its id."""
    request = evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id)
    until = time.monotonic() + SCORING_S
    while time.monotonic() < until:
        try:
            found = await stub.GetEvaluation(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            continue
        if found.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED:
            say(f"{found.images} images, {found.boxes} boxes: scored in {found.duration.ToMilliseconds() / 1000:.1f} s")
            return evaluation_id
        if found.state == evaluation_pb2.EVALUATION_STATE_FAILED:
            raise RuntimeError(found.error_message)
    raise TimeoutError(f"The evaluation {evaluation_id} was not scored in {SCORING_S:.0f} s.")


Call = Callable[[], Awaitable[object]]


async def _p99_ms(call: Call, calls: int) -> float:
    taken_ms = []
    for _ in range(calls):
        started = time.perf_counter()
        await call()
        taken_ms.append(1000 * (time.perf_counter() - started))
    return percentile(taken_ms, 0.99)


async def _thresholds(
    stub: "evaluation_pb2_grpc.EvaluationServiceAsyncStub", metadata: Metadata, evaluation_id: str, say: Say
) -> list[float]:
    chance = random.Random(0)

    async def get() -> object:
        request = evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id, threshold=chance.random())
        return await stub.GetEvaluation(request, metadata=metadata)

    await get()  # loads it
    p99_ms = []
    for _ in range(LEAST_ROUNDS):
        p99_ms.append(await _p99_ms(get, CALLS))
        say(f"threshold_p99_ms {len(p99_ms)}/{LEAST_ROUNDS}: {p99_ms[-1]:.4g} ms")
    return p99_ms


async def _every_call(
    stub: "evaluation_pb2_grpc.EvaluationServiceAsyncStub",
    metadata: Metadata,
    evaluation_id: str,
    base_id: str,
    class_name: str,
    say: Say,
) -> list[float]:
    """The slowest call's p99 of each round, of every call of the service; each with its own threshold and page size.

    Without sheets of bad cases and lists with images, of which the store has none. Of so few calls a round the p99 is
    the slowest, so this asks for more than a p99 would.
    """
    messages = evaluation_pb2

    async def bad_cases(**wanted: Any) -> evaluation_pb2.ListBadCasesResponse:
        request = messages.ListBadCasesRequest(evaluation_id=evaluation_id, **wanted)
        return await stub.ListBadCases(request, metadata=metadata)

    # Made as the service makes it: there are hundreds of pages before the last.
    last_page = read_page(messages.ListBadCasesRequest(evaluation_id=evaluation_id)).token(
        [(await bad_cases()).total_size - DEFAULT_PAGE_SIZE]
    )
    points = itertools.count(MOST_POINTS // LARGE_CLASSES, -1)
    calls: dict[str, Call] = {
        "GetEvaluation": lambda: stub.GetEvaluation(
            messages.GetEvaluationRequest(evaluation_id=evaluation_id, threshold=0.3), metadata=metadata
        ),
        "GetPrecisionRecallCurves": lambda: stub.GetPrecisionRecallCurves(
            messages.GetPrecisionRecallCurvesRequest(evaluation_id=evaluation_id), metadata=metadata
        ),
        "GetPrecisionRecallCurves, another number of points each": lambda: stub.GetPrecisionRecallCurves(
            messages.GetPrecisionRecallCurvesRequest(evaluation_id=evaluation_id, max_points=next(points)),
            metadata=metadata,
        ),
        "GetConfusionMatrix": lambda: stub.GetConfusionMatrix(
            messages.GetConfusionMatrixRequest(evaluation_id=evaluation_id), metadata=metadata
        ),
        "RecommendThresholds": lambda: stub.RecommendThresholds(
            messages.RecommendThresholdsRequest(evaluation_id=evaluation_id, precision=0.9, recall=0.5),
            metadata=metadata,
        ),
        "ListBadCases": bad_cases,
        "ListBadCases, a page as large as it gets": partial(bad_cases, page_size=200, threshold=0.0),
        "ListBadCases, the last page": partial(bad_cases, page_token=last_page),
        "ListBadCases, of a class": partial(bad_cases, class_name=class_name),
        "ListBadCases, of a kind": partial(bad_cases, kinds=[messages.FAULT_KIND_MISS]),
        "ListBadCases, by score": partial(bad_cases, min_score=0.6, max_score=0.9),
        "ListSuspectedLabels": lambda: stub.ListSuspectedLabels(
            messages.ListSuspectedLabelsRequest(evaluation_id=evaluation_id), metadata=metadata
        ),
        "CompareEvaluations": lambda: stub.CompareEvaluations(
            messages.CompareEvaluationsRequest(evaluation_id=evaluation_id, base_evaluation_id=base_id),
            metadata=metadata,
        ),
        "GetScoreHistograms": lambda: stub.GetScoreHistograms(
            messages.GetScoreHistogramsRequest(evaluation_id=evaluation_id), metadata=metadata
        ),
        "GetScoreHistograms, of as many bins as there may be": lambda: stub.GetScoreHistograms(
            messages.GetScoreHistogramsRequest(evaluation_id=evaluation_id, bins=100), metadata=metadata
        ),
        "ListTestImages": lambda: stub.ListTestImages(
            messages.ListTestImagesRequest(evaluation_id=evaluation_id), metadata=metadata
        ),
        "ListTestImages, a page as large as it gets": lambda: stub.ListTestImages(
            messages.ListTestImagesRequest(evaluation_id=evaluation_id, page_size=200), metadata=metadata
        ),
        "ListEvaluationImageReads": lambda: stub.ListEvaluationImageReads(
            messages.ListEvaluationImageReadsRequest(), metadata=metadata
        ),
        "ListEvaluations": lambda: stub.ListEvaluations(messages.ListEvaluationsRequest(), metadata=metadata),
        # Of what is streamed, the first piece.
        "ExportBadCases": lambda: _first_piece(
            stub.ExportBadCases(
                messages.ExportBadCasesRequest(evaluation_id=evaluation_id, format=messages.EXPORT_FORMAT_CSV),
                metadata=metadata,
            )
        ),
    }
    # Of a chart that has been drawn; of one that has not, see _new_charts().
    calls |= {
        f"DrawEvaluation, {kind}": partial(_draw, stub, metadata, evaluation_id, kind, DEFAULT_THRESHOLD)
        for kind in CHARTS
    }
    slowest_ms = [0.0] * LEAST_ROUNDS
    for name, call in calls.items():
        await call()
        p99_ms = [await _p99_ms(call, LARGE_CALLS // LEAST_ROUNDS) for _ in range(LEAST_ROUNDS)]
        say(f"{name}: {', '.join(f'{value:.4g}' for value in p99_ms)} ms")
        slowest_ms = [max(pair) for pair in zip(slowest_ms, p99_ms, strict=True)]
    return slowest_ms


async def _new_charts(
    stub: "evaluation_pb2_grpc.EvaluationServiceAsyncStub", metadata: Metadata, evaluation_id: str, say: Say
) -> list[float]:
    """Of each round the slowest chart at a threshold at which none has been drawn."""
    slowest_ms = []
    for number in range(1, LEAST_ROUNDS + 1):
        taken_ms = {
            kind: await _p99_ms(partial(_draw, stub, metadata, evaluation_id, kind, number / 20), 1) for kind in CHARTS
        }
        say(f"large_chart_ms {number}/{LEAST_ROUNDS}: {', '.join(f'{k} {v:.4g}' for k, v in taken_ms.items())}")
        slowest_ms.append(max(taken_ms.values()))
    return slowest_ms


async def _draw(
    stub: "evaluation_pb2_grpc.EvaluationServiceAsyncStub",
    metadata: Metadata,
    evaluation_id: str,
    kind: str,
    threshold: float,
) -> object:
    request = evaluation_pb2.DrawEvaluationRequest(
        evaluation_id=evaluation_id, kind=evaluation_pb2.PictureKind.Value(f"PICTURE_KIND_{kind}"), threshold=threshold
    )
    return await stub.DrawEvaluation(request, metadata=metadata)


async def _first_piece(call: "grpc.aio.UnaryStreamCall[Any, evaluation_pb2.ExportedPiece]") -> object:
    """The rest is not asked for: it would be made beside what is measured next."""
    first = await call.read()
    call.cancel()
    return first
