"""Deployments on the command line: made, split, looked into, asked for predictions."""

from pathlib import Path

import pytest
from PIL import Image

from saucer.lib.ids import new_id
from saucer.publishing.v1 import publishing_pb2
from tests.support.cli import Cli
from tests.unit.cli.script import DEPLOYMENT, MODEL, TASK, Script, photograph


def test_a_deployment_is_made_waited_for_and_stopped(cli: Cli, script: Script) -> None:
    text = cli("deploy", TASK, "--threshold", "cup=0.6", "--max-duration", "2h", "--wait")
    request = script.requests[-1]
    assert (request.model_id, request.display_name, request.max_duration.seconds) == (MODEL, "cups", 7200)
    assert request.thresholds[0] == publishing_pb2.ClassThreshold(class_name="cup", threshold=0.6)
    assert "active" in text
    assert "stopped" in cli("deployment", "stop", DEPLOYMENT, "--wait")
    assert "Deleted cups." in cli("deployment", "delete", DEPLOYMENT)
    assert cli.json("deployment", "delete", DEPLOYMENT)["deploymentId"] == DEPLOYMENT
    assert script.requests[-1].deployment_id == DEPLOYMENT
    cli.fails("deploy", TASK, "--threshold", "cup", code=2)


def test_predictions_are_filtered_and_drawn(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photograph())
    image, target = str(tmp_path / "a.jpg"), tmp_path / "drawn"
    default = cli("predict", DEPLOYMENT, image, "--output", str(target))
    assert "cup" in default
    assert "plate" not in default
    assert Image.open(target / "a.png").width == 64
    assert "plate" in cli("predict", DEPLOYMENT, image, "--threshold", "0.1")
    nothing = cli("predict", DEPLOYMENT, image, "--threshold", "0.9", "--output", str(target))
    assert "the highest score below it is 0.70" in nothing
    (found,) = cli.lines("predict", DEPLOYMENT, image)
    assert len(found["detections"]) == 2


def test_nothing_is_drawn_over_the_images_themselves(cli: Cli, script: Script, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(photograph())
    for images in (folder, folder / "a.png"):
        refusal = cli.fails("predict", DEPLOYMENT, str(images), "--output", str(folder / ".." / "images"))
        assert "name another folder for --output" in refusal
    assert script.predicted == 0
    assert (folder / "a.png").read_bytes() == photograph()


def test_images_that_differ_only_in_their_ending_are_drawn_apart(cli: Cli, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.webp", "b.jpg"):
        (tmp_path / name).write_bytes(photograph())
    cli("predict", DEPLOYMENT, str(tmp_path), "--output", str(tmp_path / "drawn"))
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["a-2.png", "a.png", "b.png"]


def test_a_folder_of_images_is_predicted_in_order_and_one_that_is_none_is_named(
    cli: Cli, script: Script, tmp_path: Path
) -> None:
    for name in ("b.JPG", "a.jpg", "c.png"):
        (tmp_path / name).write_bytes(photograph())
    (tmp_path / "notes.txt").write_text("no image")
    found = cli.lines("predict", DEPLOYMENT, str(tmp_path))
    assert [Path(line["image"]).name for line in found] == ["a.jpg", "b.JPG", "c.png"]
    assert script.predicted == 3
    (tmp_path / "b.JPG").write_bytes(b"")
    result = cli.result("predict", DEPLOYMENT, str(tmp_path))
    assert result.exit_code == 1
    assert "b.JPG: It is no image. (IMAGE_UNREADABLE)" in result.stdout
    assert "1 of 3 images have no answer" in result.stderr
    (tmp_path / "empty").mkdir()
    assert "No image lies in" in cli.fails("predict", DEPLOYMENT, str(tmp_path / "empty"))


def test_a_version_is_proposed_split_decided_about_and_rolled_back(cli: Cli, script: Script) -> None:
    assert "loading" in cli("update", DEPLOYMENT, TASK, "--percent", "20", "--threshold", "cup=0.6")
    request = script.requests[-1]
    assert (request.model_id, request.percent, request.thresholds[0].threshold) == (MODEL, 20, 0.6)
    # What GetDeployment answers then has no candidate, and another version serves.
    assert "Version 2 was rejected" in cli.fails("update", DEPLOYMENT, "--wait")
    assert script.requests[-1].model_id == ""
    assert "with 40 % of the traffic" in cli("split", DEPLOYMENT, "40")
    assert cli.json("split", DEPLOYMENT, "--promote")["versionNumber"] == 2
    assert cli.json("split", DEPLOYMENT, "--abandon")["versionNumber"] == 1
    cli.fails("split", DEPLOYMENT, "40", "--promote")
    assert cli.json("rollback", DEPLOYMENT, "3")["versionNumber"] == 3
    assert "no such graph" in cli("deployment", "records", DEPLOYMENT)
    assert "passed: 39 of 40 boxes on 9 images" in cli("deployment", "versions", DEPLOYMENT)
    assert "stopped" in cli("stop", DEPLOYMENT)


def test_a_decision_names_the_new_version_that_there_is_or_the_one_that_was_told(cli: Cli, script: Script) -> None:
    script.candidate = 2
    for decision in ("40", "--promote", "--abandon"):
        cli("split", DEPLOYMENT, decision)
        assert script.requests[-1].version_number == 2
        cli("split", DEPLOYMENT, decision, "--version", "7")
        assert script.requests[-1].version_number == 7


def test_whoever_waits_for_a_version_is_told_what_became_of_it(cli: Cli, script: Script) -> None:
    assert "Version 2 was rejected; `saucer deployment records" in cli.fails("update", DEPLOYMENT, "--wait")
    script.last_action = publishing_pb2.UPDATE_ACTION_ABANDONED
    assert "Version 2 was abandoned by saucer." in cli.fails("update", DEPLOYMENT, "--wait")
    script.last_action, script.state = publishing_pb2.UPDATE_ACTION_UPDATED, publishing_pb2.DEPLOYMENT_STATE_STOPPED
    stopped = "Version 2 does not serve: the deployment is stopped, with version 1."
    assert stopped in cli.fails("update", DEPLOYMENT, "--wait")


@pytest.mark.parametrize("candidate", [0, 3])
@pytest.mark.parametrize("wait", [("--wait",), ()])
def test_a_retry_is_told_what_became_of_the_version_that_it_asked_for(
    cli: Cli, script: Script, candidate: int, wait: tuple[str, ...]
) -> None:
    script.candidate, script.made_version_2 = candidate, new_id()
    told = "Version 2 was rejected; `saucer deployment records"
    assert told in cli.fails("update", DEPLOYMENT, *wait, "--request-id", script.made_version_2)
    assert told in cli.fails("rollback", DEPLOYMENT, "2", *wait)


def test_another_version_is_not_waited_for(cli: Cli, script: Script) -> None:
    script.candidate, script.last_action = 3, publishing_pb2.UPDATE_ACTION_ABANDONED
    assert "Version 2 was abandoned by saucer." in cli.fails("update", DEPLOYMENT, "--wait")


def test_a_versions_gate_shows_its_runtime_and_the_images_that_differ(cli: Cli, script: Script) -> None:
    shown = cli("deployment", "gate", DEPLOYMENT)
    assert "openvino_bf16 7.2 ms" in shown
    assert "77" in shown
    assert "1.25" in shown
    assert cli.json("deployment", "gate", DEPLOYMENT, "2")["images"][0]["boxPx"] == 1.25
    assert "has not been replayed" in cli.fails("deployment", "gate", DEPLOYMENT, "1")
    assert "has not been replayed" in cli.fails("deployment", "gate", DEPLOYMENT, "3")


def test_a_deployments_instances_traffic_log_and_events_are_listed(cli: Cli, script: Script) -> None:
    assert "images were refused: 3" in cli("deployment", "logs", DEPLOYMENT)
    listed = cli("deployment", "instances", DEPLOYMENT)
    assert all(word in listed for word in ("second", "lost", "its process is gone"))
    assert "12.3" in cli("deployment", "traffic", DEPLOYMENT, "--since", "2026-01-01T00:00Z")
    asked = script.requests[-1]
    assert asked.start_time.ToJsonString() == "2026-01-01T00:00:00Z"
    assert not asked.HasField("end_time")
    assert cli.json("deployment", "traffic", DEPLOYMENT)[0]["requests"] == "30"
    assert "no answer" in cli("deployment", "events", DEPLOYMENT)


def test_a_triton_is_registered_drained_resumed_and_unregistered(cli: Cli, script: Script) -> None:
    server = ("--address", "gpu-2:8001", "--repository", "/models", "--region", "eu", "--spec", "gpu-1")
    assert "second" in cli(
        "triton", "register", "second", *server, "--room", "4", "--threads", "2", "--copies", "3", "--gpu"
    )
    assert script.requests[-1] == publishing_pb2.RegisterTritonRequest(
        triton_id="second",
        address="gpu-2:8001",
        repository="/models",
        region_id="eu",
        spec_id="gpu-1",
        room=4,
        threads=2,
        copies=3,
        gpu=True,
    )
    cli.fails("triton", "register", "second", *server, "--room", "0", "--threads", "2", code=2)
    assert cli.json("triton", "drain", "second")["draining"] is True
    assert cli.json("triton", "resume", "second")["draining"] is False
    assert "second" in cli("triton", "unregister", "second")
    assert script.requests[-1] == publishing_pb2.UnregisterTritonRequest(triton_id="second")
    assert "second" in cli("triton", "list")


def test_the_confidence_is_moved_without_asking_again(cli: Cli, script: Script, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photograph())
    arguments = ("test", DEPLOYMENT, str(tmp_path / "a.jpg"), "--interactive")
    result = cli.result(*arguments, stdin="0.1\n2\n0.9\n\n0.2\n")
    assert result.exit_code == 0, result.output
    own, low, high = result.stdout.partition("plate")[0], result.stdout, result.stdout.rpartition("plate")[2]
    assert "cup" in own
    assert low.count("plate") == 1
    assert "the highest score below it is 0.70" in high
    assert "2 is no confidence" in result.stderr
    assert script.predicted == 1
    assert Image.open(tmp_path / "a-boxes.png").width == 64
    assert "must end in .png." in cli.fails(
        "test", DEPLOYMENT, str(tmp_path / "a.jpg"), "--output", str(tmp_path / "b.jpg"), code=2
    )


def test_where_nobody_types_the_rest_of_standard_input_stays_for_the_loop_that_calls(
    cli: Cli, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(photograph())
    result = cli.result("test", DEPLOYMENT, str(tmp_path / "a.jpg"), stdin="b.jpg\n")
    assert result.exit_code == 0, result.output
    assert "b.jpg" not in result.stderr
    assert (tmp_path / "a-boxes.png").exists()
