"""A task to start from."""

from datetime import UTC, datetime

from saucer.task.defaults import Data
from saucer.task.domain import ChargeStatus, Config, Form, Progress, Task, TaskState

NOW = datetime(2026, 11, 23, tzinfo=UTC)
DATA = Data(
    dataset_version_id="d",
    manifest_key="m",
    manifest_sha256="0" * 64,
    image_prefix="i",
    classes=("cup", "plate"),
    training_images=300,
    validation_images=60,
    test_images=60,
    training_labels=900,
    validation_labels=180,
    labels=1_260,
    median_width=640,
    median_height=480,
    median_box_share=0.03,
)


def form(**changes: object) -> Form:
    values: dict[str, object] = {
        "display_name": "cups",
        "scene": "object-detection",
        "remark": "",
        "tags": (),
        "dataset_version_id": "d",
        "output_path": "",
        "expected_accuracy": None,
        "max_duration_ms": None,
        "epochs": None,
        "lr": None,
        "batch_size": None,
        "warmup": None,
        "input_size": None,
        "region_id": "local",
        "spec_id": "cpu-2",
        "count": 1,
        "billing_mode": "POSTPAID",
        "starting_point": "",
        "seed": 0,
    }
    return Form(**(values | changes))  # type: ignore[arg-type] # one dict for all types


def config() -> Config:
    return Config(
        scene="object-detection",
        classes=("cup",),
        manifest_key="m",
        manifest_sha256="0" * 64,
        image_prefix="i",
        input_size=192,
        epochs=3,
        lr=0.002,
        batch_size=8,
        warmup=5,
        seed=0,
        expected_accuracy=None,
        max_duration_ms=3_600_000,
        starting_point="imagenet-lite0",
        output_path="outputs",
        resume=False,
    )


def task() -> Task:
    return Task(
        task_id="t",
        account_id="a",
        request_id="r",
        form=form(),
        config=config(),
        derived=(),
        state=TaskState.PENDING,
        former_state=None,
        former=None,
        charge_status=ChargeStatus.NOT_BILLING,
        start_number=1,
        restart_request_id=None,
        hold_micros=0,
        price_per_hour_micros=0,
        currency="EUR",
        progress=Progress(),
        stop_requested=False,
        end_reason=None,
        error_message="",
        missing_micros=0,
        model_id="",
        evaluation_id="",
        test_accuracy=None,
        created_at=NOW,
        updated_at=NOW,
        ended_at=None,
        deleted_at=None,
        revision=1,
    )
