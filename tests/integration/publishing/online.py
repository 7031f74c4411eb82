"""Publishing with real billing, PostgreSQL, NATS and Triton, and a tiny real model that was trained by nobody."""

from __future__ import annotations  # the stubs' asynchronous classes exist only for type checkers

import hashlib
import json
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import cv2
import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from nats.js import JetStreamContext
from tritonclient.grpc import service_pb2 as pb

from saucer.billing.main import wire as wire_billing
from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.auth import Role
from saucer.lib.clock import to_timestamp
from saucer.lib.config import ServiceSettings
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.local.servers import TritonServer
from saucer.publishing.main import PublishingSettings
from saucer.publishing.main import wire as wire_publishing
from saucer.publishing.service.gates import MEASURE_AGAIN_AFTER
from saucer.publishing.v1 import publishing_pb2, publishing_pb2_grpc
from saucer.serving.detections import Detections
from saucer.serving.detector import Detector
from saucer.serving.spec import ModelSpec
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.support.events import event, publish, until
from tests.support.graphs import write_model
from tests.support.services import Metadata, Running, ServiceRunner, Tokens

PRICE_MICROS = 3_600_000
HOLD_MICROS = 2 * PRICE_MICROS
TEST_IMAGES = 10
Change = Callable[[Detections], Detections]
# What a machine may lack, in the words of serving/runtime.py.
LACKING = ("OpenVINO is not installed", "this processor does not compute in bfloat16")


def jpeg(level: int, width: int = 80, height: int = 60) -> bytes:
    """A grey picture; the model's scores are its brightness and the rest to 1."""
    pixels = np.full((height, width, 3), level, np.uint8)
    return bytes(cv2.imencode(".jpg", pixels)[1])


IMAGES = [jpeg(20 * number, 60 + number) for number in range(1, TEST_IMAGES + 1)]


@dataclass
class Online:
    """What a test needs: both services' stubs, and money, models and events to give them."""

    jetstream: JetStreamContext
    tokens: Tokens
    objects: Objects
    folder: Path
    billing: billing_pb2_grpc.BillingServiceAsyncStub
    run_service: ServiceRunner
    settings: dict[str, Any]
    publishing: publishing_pb2_grpc.PublishingServiceAsyncStub = field(init=False)
    address: str = field(init=False)

    @property
    def administrator(self) -> Metadata:
        return self.tokens.metadata(Role.ADMINISTRATOR)

    def owner(self, account_id: str) -> Metadata:
        return self.tokens.metadata(Role.OWNER, account_id)

    @asynccontextmanager
    async def serving(self, **settings: Any) -> AsyncIterator[Running]:
        """Publishing runs until the block ends; another block goes on with the same database."""
        async with self.run_service(
            "publishing",
            PublishingSettings,
            wire_publishing,
            **(self.settings | {"work_folder": self.folder / new_id()} | settings),
        ) as running:
            self.publishing = publishing_pb2_grpc.PublishingServiceStub(running.channel)
            self.address = running.address
            yield running

    async def account(self, balance_micros: int = HOLD_MICROS) -> str:
        account = await self.billing.CreateAccount(
            billing_pb2.CreateAccountRequest(request_id=new_id(), display_name="A", currency="EUR", reason="a test"),
            metadata=self.administrator,
        )
        if balance_micros:
            await self.top_up(account.account_id, balance_micros)
        return account.account_id

    async def group(self, account_id: str, capacity: int) -> str:
        request = billing_pb2.CreateResourceGroupRequest(
            request_id=new_id(),
            account_id=account_id,
            display_name="Capacity",
            region_id="local",
            spec_id="cpu-2",
            capacity=capacity,
            end_time=to_timestamp(datetime.now(UTC) + timedelta(days=1)),
            reason="a test",
        )
        return (await self.billing.CreateResourceGroup(request, metadata=self.administrator)).resource_group_id

    async def top_up(self, account_id: str, amount_micros: int) -> None:
        request = billing_pb2.TopUpAccountRequest(
            account_id=account_id, external_reference=new_id(), amount_micros=amount_micros
        )
        await self.billing.TopUpAccount(request, metadata=self.administrator)

    async def balance(self, account_id: str) -> tuple[int, int]:
        request = billing_pb2.GetAccountRequest(account_id=account_id)
        account = await self.billing.GetAccount(request, metadata=self.administrator)
        return account.available_micros, account.frozen_micros

    async def statements(self, account_id: str) -> Sequence[billing_pb2.Statement]:
        request = billing_pb2.ListStatementsRequest(account_id=account_id)
        return (await self.billing.ListStatements(request, metadata=self.administrator)).statements

    async def resolved(self, account_id: str) -> billing_pb2.Hold:
        """The account's newest hold, once it is resolved."""

        async def look() -> billing_pb2.Hold | None:
            hold = (await self.statements(account_id))[0].hold
            return hold if hold.state == billing_pb2.HOLD_STATE_RESOLVED else None

        return await until(look)

    async def send(self, message: Message, service: str, account_id: str, work_id: str | None = None) -> None:
        await publish(self.jetstream, event(message, service, account_id, work_id, new_id()))

    async def model(
        self,
        account_id: str,
        *,
        evaluated: bool = True,
        graph: bytes | None = None,
        change: Change = lambda detections: detections,
        made: Path | None = None,
        images: Sequence[bytes] = IMAGES,
    ) -> str:
        """A model whose run and evaluation have ended; `change` falsifies its stored detections.

        `made` is its folder, `images` its test images; without, the model of tests/support/graphs and grey pictures.
        """
        model_id, task_id = new_id(), new_id()
        folder = made or write_model(self.folder / model_id)
        model = await self._store_model(account_id, model_id, folder, graph, change, images)
        run = training_pb2.Run(run_id=new_id(), account_id=account_id, task_id=task_id, model_id=model_id)
        await self.send(training_events.RunEnded(run=run, model=model), "training", account_id, task_id)
        if evaluated:
            await self.evaluate(account_id, model_id)
        return model_id

    async def evaluate(self, account_id: str, model_id: str, *, by_prediction: bool = False) -> None:
        evaluation = evaluation_pb2.Evaluation(
            evaluation_id=new_id(),
            by_prediction=by_prediction,
            account_id=account_id,
            model_id=model_id,
            state=evaluation_pb2.EVALUATION_STATE_SUCCEEDED,
            recommended_threshold=0.4,
            classes=[
                evaluation_pb2.ClassResult(class_name="dark", recommended_threshold=0.3),
                evaluation_pb2.ClassResult(class_name="bright"),
            ],
        )
        evaluation.end_time.GetCurrentTime()
        await self.send(evaluation_events.EvaluationEnded(evaluation=evaluation), "evaluation", account_id)

    async def _store_model(
        self,
        account_id: str,
        model_id: str,
        folder: Path,
        graph: bytes | None,
        change: Change,
        images: Sequence[bytes],
    ) -> training_pb2.Model:
        names = [hashlib.sha256(image).hexdigest() for image in images]
        for name, image in zip(names, images, strict=True):
            await self.objects.put(f"system/{account_id}/images/{name}", image)
        ids = list(range(5, 5 + len(images)))
        stored = change(Detections.collect(ids, Detector.load(folder).detect(images)))
        entries = [{"id": number, "file_name": name} for number, name in zip(ids, names, strict=True)]
        manifest = json.dumps({"categories": [], "images": [{"id": 1, "file_name": "x"}, *entries], "annotations": []})
        contents = {
            "model.onnx": graph or (folder / "model.onnx").read_bytes(),
            "model.json": (folder / "model.json").read_bytes(),
            "detections_test.npz": stored.to_bytes(),
        }
        files = []
        for name, content in contents.items():
            key = f"system/{account_id}/runs/{model_id}/attempt-1/{name}"
            sha256 = await self.objects.put(key, content)
            files.append(training_pb2.ModelFile(name=name, key=key, size_bytes=len(content), sha256=sha256))
        manifest_key = f"system/{account_id}/datasets/{model_id}/manifest.json"
        return training_pb2.Model(
            model_id=model_id,
            account_id=account_id,
            classes=ModelSpec.load(folder).classes,
            manifest_key=manifest_key,
            manifest_sha256=await self.objects.put(manifest_key, manifest.encode()),
            image_prefix=f"system/{account_id}/images",
            files=files,
        )

    def form(self, model_id: str, **changes: Any) -> publishing_pb2.CreateDeploymentRequest:
        usual: dict[str, Any] = {
            "request_id": new_id(),
            "display_name": "cups",
            "model_id": model_id,
            "region_id": "local",
            "spec_id": "cpu-2",
            "replicas": 1,
            "billing_mode": billing_pb2.BILLING_MODE_POSTPAID,
        }
        return publishing_pb2.CreateDeploymentRequest(**(usual | changes))

    async def create(self, account_id: str, model_id: str, **changes: Any) -> publishing_pb2.Deployment:
        return await self.publishing.CreateDeployment(self.form(model_id, **changes), metadata=self.owner(account_id))

    async def active(self) -> publishing_pb2.Deployment:
        """One that serves the plain model of an account of its own."""
        account_id = await self.account()
        created = await self.create(account_id, await self.model(account_id))
        active = await self.until_state(created, "ACTIVE", "FAILED")
        assert active.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, active.error_message
        return active

    async def get(self, deployment_id: str) -> publishing_pb2.Deployment:
        request = publishing_pb2.GetDeploymentRequest(deployment_id=deployment_id)
        return await self.publishing.GetDeployment(request, metadata=self.administrator)

    async def stop(self, deployment: publishing_pb2.Deployment) -> publishing_pb2.Deployment:
        request = publishing_pb2.StopDeploymentRequest(request_id=new_id(), deployment_id=deployment.deployment_id)
        return await self.publishing.StopDeployment(request, metadata=self.owner(deployment.account_id))

    async def update(
        self, deployment: publishing_pb2.Deployment, model_id: str, **changes: Any
    ) -> publishing_pb2.Deployment:
        usual = {"request_id": new_id(), "deployment_id": deployment.deployment_id, "model_id": model_id}
        request = publishing_pb2.UpdateDeploymentRequest(**(usual | changes))

        async def ask() -> publishing_pb2.Deployment | None:
            try:
                return await self.publishing.UpdateDeployment(request, metadata=self.owner(deployment.account_id))
            except grpc.aio.AioRpcError as error:
                # Under load the event of its evaluation may be on its way for longer than the call waits.
                if from_rpc(error).reason != "MODEL_NOT_EVALUATED":
                    raise
                return None

        return await until(ask)

    async def records(self, deployment: publishing_pb2.Deployment) -> list[publishing_pb2.UpdateRecord]:
        """Oldest first."""
        request = publishing_pb2.ListUpdateRecordsRequest(deployment_id=deployment.deployment_id, page_size=1000)
        answer = await self.publishing.ListUpdateRecords(request, metadata=self.owner(deployment.account_id))
        return list(reversed(answer.records))

    async def gate_of(self, deployment: publishing_pb2.Deployment) -> publishing_pb2.Gate:
        """Of its newest version."""
        request = publishing_pb2.ListDeploymentVersionsRequest(deployment_id=deployment.deployment_id)
        owner = self.owner(deployment.account_id)
        return (await self.publishing.ListDeploymentVersions(request, metadata=owner)).versions[0].gate

    async def keep_choice(self, model_id: str, runtime: str, *, complete: bool = True) -> None:
        """As if the runtime had been measured for the model before, and, if not complete, another had failed then."""
        await self._execute(
            """
            INSERT INTO model_runtime (model_id, region_id, spec_id, runtime, measured_ms, reason, complete, chosen_at)
            VALUES ($1, 'local', 'cpu-2', $2, $3, 'It was the fastest.', $4, now())
            """,
            model_id,
            runtime,
            json.dumps([[runtime, 0.001]]),
            complete,
        )

    async def age_choice(self, model_id: str) -> None:
        """As if it had been chosen so long ago that, if not complete, it is to be measured again."""
        statement = "UPDATE model_runtime SET chosen_at = chosen_at - $2::interval WHERE model_id = $1"
        await self._execute(statement, model_id, MEASURE_AGAIN_AFTER)

    async def _execute(self, statement: str, *arguments: object) -> None:
        connection = await asyncpg.connect(self.settings["database_url"])
        await connection.execute(statement, *arguments)
        await connection.close()

    async def until_settled(self, deployment: publishing_pb2.Deployment) -> publishing_pb2.Deployment:
        """Without a candidate that is on its way."""

        async def look() -> publishing_pb2.Deployment | None:
            found = await self.get(deployment.deployment_id)
            return None if found.HasField("candidate") and not found.candidate.ready else found

        return await until(look, timeout_s=60)

    async def register(
        self, triton_id: str, server: TritonServer, room: int = 8, copies: int = 0, spec_id: str = "cpu-2"
    ) -> None:
        request = publishing_pb2.RegisterTritonRequest(
            triton_id=triton_id,
            address=server.grpc_address,
            repository=str(server.repository),
            region_id="local",
            spec_id=spec_id,
            room=room,
            threads=1,
            copies=copies,
        )
        await self.publishing.RegisterTriton(request, metadata=self.administrator)

    async def instances(self, deployment: publishing_pb2.Deployment) -> list[tuple[str, bool, bool]]:
        """Ids, whether they answer, and whether they serve."""
        request = publishing_pb2.ListInstancesRequest(deployment_id=deployment.deployment_id)
        answer = await self.publishing.ListInstances(request, metadata=self.owner(deployment.account_id))
        return [(item.instance_id, item.live, item.serving) for item in answer.instances]

    async def start(self, deployment: publishing_pb2.Deployment) -> publishing_pb2.Deployment:
        request = publishing_pb2.StartDeploymentRequest(request_id=new_id(), deployment_id=deployment.deployment_id)
        return await self.publishing.StartDeployment(request, metadata=self.owner(deployment.account_id))

    async def predict(self, deployment: publishing_pb2.Deployment, image: bytes) -> publishing_pb2.PredictResponse:
        request = publishing_pb2.PredictRequest(deployment_id=deployment.deployment_id, image=image)
        return await self.publishing.Predict(request, metadata=self.owner(deployment.account_id), timeout=120)

    async def until_state(
        self, deployment: publishing_pb2.Deployment, *states: str, timeout_s: float = 40.0
    ) -> publishing_pb2.Deployment:
        values = {publishing_pb2.DeploymentState.Value(f"DEPLOYMENT_STATE_{state}") for state in states}

        async def look() -> publishing_pb2.Deployment | None:
            found = await self.get(deployment.deployment_id)
            return found if found.state in values else None

        return await until(look, timeout_s=timeout_s)

    async def until_charged(self, deployment: publishing_pb2.Deployment, beyond_ms: int) -> publishing_pb2.Deployment:
        async def look() -> publishing_pb2.Deployment | None:
            found = await self.get(deployment.deployment_id)
            return found if found.charged_ms > beyond_ms else None

        return await until(look)


@asynccontextmanager
async def online(
    run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, triton: TritonServer, folder: Path
) -> AsyncIterator[Online]:
    """Billing runs, with a spec on offer; publishing does once the test says so. At the end the ledger is audited."""
    store = f"file://{folder / 'objects'}"
    async with run_service("billing", ServiceSettings, wire_billing) as billing:
        world = Online(
            jetstream,
            tokens,
            Objects(store),
            folder,
            billing_pb2_grpc.BillingServiceStub(billing.channel),
            run_service,
            {
                "database_url": await run_service.new_database(),
                "billing_address": billing.address,
                "object_store_url": store,
                "triton_address": triton.grpc_address,
                "triton_control_key": triton.control_key,
                "triton_repository": triton.repository,
                "triton_threads": 1,
                # To try all takes seconds; tests/integration/publishing/test_runtimes.py does.
                "triton_choose_runtime": False,
                "region_id": "local",
                "spec_id": "cpu-2",
            },
        )
        await world.billing.CreateRegion(
            billing_pb2.CreateRegionRequest(
                request_id=new_id(), region_id="local", display_name="Here", reason="a test"
            ),
            metadata=world.administrator,
        )
        await world.billing.CreateSpec(
            billing_pb2.CreateSpecRequest(
                request_id=new_id(),
                region_id="local",
                spec_id="cpu-2",
                display_name="2 cores",
                cpu_cores=2,
                max_count=4,
                price_per_hour_micros=PRICE_MICROS,
                currency="EUR",
                reason="a test",
            ),
            metadata=world.administrator,
        )
        yield world
        audit = await world.billing.AuditLedger(billing_pb2.AuditLedgerRequest(), metadata=world.administrator)
        assert audit.clean, audit.findings


def infer_request(name: str, *images: bytes, version: str = "") -> pb.ModelInferRequest:
    """KServe's, as its clients send images."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[len(images), 1])
    content = b"".join(struct.pack("<I", len(image)) + image for image in images)
    return pb.ModelInferRequest(model_name=name, model_version=version, inputs=[tensor], raw_input_contents=[content])


def lacks(gate: publishing_pb2.Gate, runtime: str) -> bool:
    """Whether the machine that serves has no such runtime; that one is not chosen for another reason is not meant."""
    return any(f"{runtime} is not used: {reason}" in gate.runtime_reason for reason in LACKING)


def serving_processes(deployment_id: str) -> list[int]:
    """Triton's processes that hold a deployment's model, by their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if "triton_python_backend_stub" in command and deployment_id in command:
            found.append(int(folder.name))
    return found


def signal_serving_process(deployment_id: str, number: signal.Signals) -> None:
    processes = serving_processes(deployment_id)
    assert processes, "nothing serves it"
    for process in processes:
        os.kill(process, number)


async def refused(call: Any) -> tuple[str, Any]:
    """Status and typed error of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code().name, from_rpc(failure.value)
