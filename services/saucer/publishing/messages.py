"""Domain to message and back, for requests, replies and events alike."""

from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import datetime

from saucer.billing.v1 import billing_pb2
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.clock import from_duration, to_duration, to_timestamp
from saucer.lib.errors import InvalidArgumentError
from saucer.publishing.batching import Counters
from saucer.publishing.domain import (
    Candidate,
    Deployment,
    DeploymentEvent,
    DeploymentState,
    Evaluation,
    Form,
    KeptLine,
    Model,
    Parity,
    Triton,
    UpdateRecord,
    Version,
)
from saucer.publishing.gate import Gate
from saucer.publishing.traffic import PIECE, Piece
from saucer.publishing.v1 import publishing_pb2
from saucer.training.v1 import training_pb2


def read_model(message: training_pb2.Model) -> Model:
    """A model as its run left it."""
    return Model(
        model_id=message.model_id,
        account_id=message.account_id,
        classes=tuple(message.classes),
        files={file.name: (file.key, file.sha256) for file in message.files},
        manifest_key=message.manifest_key,
        manifest_sha256=message.manifest_sha256,
        image_prefix=message.image_prefix,
    )


def read_evaluation(message: evaluation_pb2.Evaluation) -> Evaluation:
    """The thresholds that an evaluation recommends."""
    return Evaluation(
        evaluation_id=message.evaluation_id,
        model_id=message.model_id,
        recommended={
            result.class_name: result.recommended_threshold
            for result in message.classes
            if result.HasField("recommended_threshold")
        },
        recommended_overall=message.recommended_threshold if message.HasField("recommended_threshold") else None,
    )


def read_form(message: publishing_pb2.CreateDeploymentRequest) -> Form:
    """What the user chose."""
    return Form(
        display_name=message.display_name,
        model_id=message.model_id,
        region_id=message.region_id,
        spec_id=message.spec_id,
        replicas=message.replicas,
        billing_mode=read_billing_mode(message.billing_mode),
        max_duration_ms=from_duration(message.max_duration) if message.HasField("max_duration") else None,
        thresholds=tuple(sorted(read_thresholds(message.thresholds).items())),
        resource_group_id=message.resource_group_id,
        budget_micros=message.budget_micros,
        idle_stop_ms=from_duration(message.idle_stop) if message.HasField("idle_stop") else None,
    )


def read_thresholds(messages: Iterable[publishing_pb2.ClassThreshold]) -> dict[str, float]:
    """By class. Raises InvalidArgumentError: CLASS_TWICE."""
    given = [(message.class_name, message.threshold) for message in messages]
    thresholds = dict(given)
    if len(thresholds) < len(given):
        raise InvalidArgumentError("CLASS_TWICE", "thresholds: a class is named twice.")
    return thresholds


def read_billing_mode(mode: billing_pb2.BillingMode.ValueType) -> str:
    """POSTPAID or PREPAID."""
    return billing_pb2.BillingMode.Name(mode).removeprefix("BILLING_MODE_")


def deployment_message(deployment: Deployment) -> publishing_pb2.Deployment:
    """A deployment as it is now."""
    form = deployment.form
    return publishing_pb2.Deployment(
        deployment_id=deployment.deployment_id,
        account_id=deployment.account_id,
        display_name=form.display_name,
        model_id=deployment.version.model_id,
        evaluation_id=deployment.version.evaluation_id,
        state=publishing_pb2.DeploymentState.Value(f"DEPLOYMENT_STATE_{deployment.state}"),
        charge_status=billing_pb2.ChargeStatus.Value(f"CHARGE_STATUS_{deployment.charge_status}"),
        region_id=form.region_id,
        spec_id=form.spec_id,
        replicas=form.replicas,
        max_duration=to_duration(form.max_duration_ms),
        thresholds=_thresholds(deployment.version),
        classes=deployment.version.classes,
        version_number=deployment.version.number,
        candidate=_candidate_message(deployment.candidate) if deployment.candidate else None,
        start_number=deployment.start_number,
        hold_id=deployment.hold_id,
        hold_micros=deployment.hold_micros,
        price_per_hour_micros=deployment.price_per_hour_micros,
        currency=deployment.currency,
        charged_ms=deployment.charged_ms,
        cost_micros=deployment.cost_micros,
        serving_replicas=len(deployment.counted) if deployment.state is DeploymentState.ACTIVE else 0,
        parity=parity_message(deployment.version.parity) if deployment.version.parity else None,
        stop_time=to_timestamp(deployment.stop_at),
        idle_stop=to_duration(form.idle_stop_ms),
        idle_stop_time=to_timestamp(deployment.idle_stop_at),
        end_reason=publishing_pb2.DeploymentEndReason.Value(f"DEPLOYMENT_END_REASON_{deployment.end_reason}")
        if deployment.end_reason
        else publishing_pb2.DEPLOYMENT_END_REASON_UNSPECIFIED,
        error_message=deployment.error_message,
        missing_micros=deployment.missing_micros,
        create_time=to_timestamp(deployment.created_at),
        active_time=to_timestamp(deployment.active_at),
        end_time=to_timestamp(deployment.ended_at),
        delete_time=to_timestamp(deployment.deleted_at),
        revision=deployment.revision,
        warnings=deployment.warnings,
        stop_requested=deployment.stop_requested,
        billing_mode=billing_pb2.BillingMode.Value(f"BILLING_MODE_{form.billing_mode}"),
        resource_group_id=form.resource_group_id,
        budget_micros=form.budget_micros,
    )


def version_message(
    version: Version, created_at: datetime | None = None, gate: Gate | None = None
) -> publishing_pb2.Version:
    """A version; of a list with the time at which it was asked for, and its last replay."""
    return publishing_pb2.Version(
        number=version.number,
        model_id=version.model_id,
        evaluation_id=version.evaluation_id,
        classes=version.classes,
        thresholds=_thresholds(version),
        parity=parity_message(version.parity) if version.parity else None,
        create_time=to_timestamp(created_at),
        gate=_gate_message(gate) if gate else None,
    )


def _gate_message(gate: Gate) -> publishing_pb2.Gate:
    return publishing_pb2.Gate(
        parity=parity_message(gate.parity),
        images=[
            publishing_pb2.ImageDifference(
                image_id=image.image_id,
                boxes=image.boxes,
                unpaired=image.boxes - image.paired,
                only_evaluated=image.only_evaluated,
                only_served=image.only_served,
                box_px=image.box_px,
                score=image.score,
            )
            for image in gate.worst
        ],
        runtime=gate.choice.runtime,
        times=[
            publishing_pb2.RuntimeTime(runtime=runtime, image_ms=took_ms)
            for runtime, took_ms in gate.choice.measured_ms
        ],
        runtime_reason=gate.choice.reason,
        tolerance_px=gate.tolerance.box_px,
        tolerance_score=gate.tolerance.score,
        tolerance_share=gate.tolerance.permille / 1000,
        replay_time=to_timestamp(gate.replayed_at),
    )


def _candidate_message(candidate: Candidate) -> publishing_pb2.Candidate:
    return publishing_pb2.Candidate(
        version=version_message(candidate.version),
        percent=candidate.percent,
        ready=candidate.ready,
        propose_time=to_timestamp(candidate.proposed_at),
    )


def _thresholds(version: Version) -> list[publishing_pb2.ClassThreshold]:
    return [
        publishing_pb2.ClassThreshold(class_name=name, threshold=threshold) for name, threshold in version.thresholds
    ]


def record_message(record: UpdateRecord) -> publishing_pb2.UpdateRecord:
    """Who changed what."""
    return publishing_pb2.UpdateRecord(
        number=record.number,
        action=publishing_pb2.UpdateAction.Value(f"UPDATE_ACTION_{record.action}"),
        author=record.author,
        from_version=record.from_version,
        to_version=record.to_version,
        percent=record.percent,
        detail=record.detail,
        create_time=to_timestamp(record.created_at),
        request_id=record.request_id or "",
    )


def instances_message(deployment: Deployment, live: Collection[str]) -> publishing_pb2.ListInstancesResponse:
    """What carries a deployment: the version that serves, then its candidate. `live`: Tritons that answer."""
    return publishing_pb2.ListInstancesResponse(
        instances=[
            publishing_pb2.Instance(
                instance_id=item.triton_id,
                version_number=item.version_number,
                live=item.triton_id in live,
                serving=item.serving and item.version_number == deployment.version.number,
                state=publishing_pb2.InstanceState.Value(f"INSTANCE_STATE_{item.state}"),
                state_time=to_timestamp(item.since),
                message=item.message,
            )
            for item in (*deployment.own_instances, *deployment.candidate_instances)
        ]
    )


def sample_message(piece: Piece, counted: Counters) -> publishing_pb2.TrafficSample:
    """Requests to one version in one piece of time, and what Triton counted in it."""
    return publishing_pb2.TrafficSample(
        version_number=piece.version_number,
        start_time=to_timestamp(piece.began_at),
        requests=piece.requests,
        errors=piece.errors,
        requests_per_second=piece.requests / PIECE.total_seconds(),
        latency_p50_ms=piece.percentile_ms(0.5),
        latency_p95_ms=piece.percentile_ms(0.95),
        latency_p99_ms=piece.percentile_ms(0.99),
        load=piece.load,
        batch_size=counted.batch_size,
        queue_ms=counted.queue_ms,
    )


def log_line_message(kept: KeptLine) -> publishing_pb2.DeploymentLogLine:
    """What a model said."""
    return publishing_pb2.DeploymentLogLine(
        version_number=kept.version_number,
        instance_id=kept.triton_id,
        level=kept.line.level,
        message=kept.line.message,
        log_time=to_timestamp(kept.line.logged_at),
    )


def event_message(event: DeploymentEvent) -> publishing_pb2.DeploymentEvent:
    """What happened, and how often."""
    return publishing_pb2.DeploymentEvent(
        start_number=event.start_number,
        kind=event.kind,
        message=event.message,
        count=event.count,
        first_time=to_timestamp(event.first_at),
        last_time=to_timestamp(event.last_at),
    )


def triton_message(triton: Triton, used: int = 0) -> publishing_pb2.Triton:
    """A registered server, with the number of deployments that it has."""
    return publishing_pb2.Triton(**asdict(triton), used=used)


def read_triton(message: publishing_pb2.RegisterTritonRequest) -> Triton:
    """As it is registered."""
    return Triton(
        message.triton_id,
        message.address,
        message.repository,
        message.region_id,
        message.spec_id,
        message.room,
        message.threads,
        message.copies or 1,
        message.gpu,
    )


def parity_message(parity: Parity) -> publishing_pb2.Parity:
    """The replay's result."""
    return publishing_pb2.Parity(
        ok=parity.ok,
        images=parity.images,
        boxes=parity.boxes,
        paired=parity.paired,
        paired_share=parity.paired_share,
        worst_images=parity.worst_images,
    )
