"""Tasks on the command line: created, quoted, listed, watched, shown."""

from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2
from tests.support.cli import Cli
from tests.unit.cli.script import ACCOUNT, TASK, VERSION, Script

CREATE = ("task", "create", "--name", "cups", "--dataset", VERSION, "--max-duration", "15m", "--epochs", "8")


def test_a_task_is_created_from_its_options_and_the_profiles_defaults(cli: Cli, script: Script) -> None:
    assert cli.json(*CREATE, "--expected-accuracy", "0.8")["taskId"] == TASK
    (request,) = script.requests
    form = request.form
    assert (request.account_id, form.region_id, form.spec_id, form.scene) == (
        ACCOUNT,
        "local",
        "cpu-2",
        "object-detection",
    )
    assert (form.max_duration.seconds, form.epochs, form.expected_accuracy) == (900, 8, 0.8)
    assert not form.HasField("lr")


def test_a_repeated_command_sends_the_same_request_id(cli: Cli, script: Script) -> None:
    request_id = new_id()
    for _ in range(2):
        cli(*CREATE, "--request-id", request_id)
    cli(*CREATE)
    first, second, third = (request.request_id for request in script.requests)
    assert first == second == request_id != third


def test_a_quote_prints_its_warnings_beside_the_figures(cli: Cli) -> None:
    result = cli.result("task", "quote", *CREATE[2:])
    assert "7.20 EUR" in result.stdout
    assert "It is slow." in result.stderr


def test_tasks_are_filtered_by_state(cli: Cli, script: Script) -> None:
    assert "training" in cli("task", "list", "--state", "training", "--state", "queued")
    assert list(script.requests[0].states) == [task_pb2.TASK_STATE_TRAINING, task_pb2.TASK_STATE_QUEUED]


def test_watching_survives_a_restart_and_prints_a_line_for_each_change(cli: Cli, script: Script) -> None:
    result = cli.result("task", "watch", TASK)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert script.watched == 2
    assert len(lines) == 3
    assert "42 %" in lines[0]
    for part in (
        "epoch 3.4 of 8",
        "0:01:10 of 1:00:00",
        "0:01:40 left",
        "0.03 EUR so far",
        "best map_50 0.700 of 0.800",
    ):
        assert part in lines[0]
    assert "succeeded" in result.stdout


def test_watching_with_json_prints_a_snapshot_a_line(cli: Cli) -> None:
    states = [task["state"] for task in cli.lines("task", "watch", TASK)]
    assert states == ["TASK_STATE_TRAINING", "TASK_STATE_TRAINING", "TASK_STATE_SUCCEEDED"]


def test_a_task_is_shown_and_still_by_the_verbs_former_name(cli: Cli) -> None:
    shown = cli("task", "show", TASK)
    assert "succeeded" in shown
    assert cli("task", "get", TASK) == shown
    assert "NOT_FOUND" in cli.fails("task", "get", new_id())
