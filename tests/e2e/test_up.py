"""`saucer up` in the foreground, stopped by Ctrl-C in mid-training, started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.stack import PROJECT

START_S = 90.0
STOP_S = 10.0
TRAINING_S = 90.0


@contextmanager
def up(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A stack in a session of its own, until it says that it is up."""
    (PROJECT / folder / "profile.json").unlink(missing_ok=True)
    saucer = Path(sys.executable).with_name("saucer")
    process = subprocess.Popen(
        [saucer, "up", "--folder", folder],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_S
        assert process.stdout is not None
        for line in process.stdout:
            if "Stop with Ctrl-C" in line:
                break
            assert time.monotonic() < deadline, line
        assert process.poll() is None, "it ended"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def processes_of(folder: Path) -> list[int]:
    """Every process that works in the folder or below it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile, or is not ours to see
    return found


def command(folder: Path, *arguments: str) -> list[dict[str, Any]] | dict[str, Any]:
    saucer = Path(sys.executable).with_name("saucer")
    profile = ["--profile", str(folder / "profile.json"), "--json"]
    done = subprocess.run([saucer, *arguments, *profile], cwd=PROJECT, capture_output=True, text=True, check=True)
    answer: list[dict[str, Any]] | dict[str, Any] = json.loads(done.stdout)
    return answer


def task_that(folder: Path, task_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + TRAINING_S
    while True:
        task = command(folder, "task", "show", task_id)
        assert isinstance(task, dict)
        if holds(task):
            return task
        assert time.monotonic() < deadline, task
        time.sleep(0.2)


def test_ctrl_c_in_mid_training_stops_everything_within_ten_seconds_and_a_second_start_goes_on(
    servers_dir: Path, shapes_folder: Path
) -> None:
    # As a user gives it: relative.
    folder = Path(os.path.relpath(servers_dir / "up", PROJECT))
    with up(folder) as process:
        account = command(folder, "account", "create", "--name", "kept", "--reason", "a test")
        assert isinstance(account, dict)
        owner = ("--account", str(account["accountId"]))
        command(folder, "account", "topup", owner[1], "20")
        imported = command(folder, "dataset", "import", str(shapes_folder), *owner)
        assert isinstance(imported, dict)
        version = imported["datasetVersion"]
        form = ("--name", "kept", "--dataset", version["datasetVersionId"], "--epochs", "500", *owner)
        task = command(folder, "task", "create", *form)
        assert isinstance(task, dict)
        before = task_that(folder, task["taskId"], lambda task: task["iteration"] > 0)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=STOP_S)
        assert process.returncode == 0
        assert processes_of(servers_dir / "up") == []
    with up(folder) as process:
        # Given back, so that nobody waits for the lease to run out; with its checkpoint, so that nothing is done again.
        after = task_that(folder, task["taskId"], lambda task: task["attempt"] == 2)
        assert after["iteration"] >= before["iteration"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=STOP_S)
    assert processes_of(servers_dir / "up") == []
    log = (servers_dir / "up" / "logs" / "training.log").read_text()
    assert "released=True" in log
    assert "released=False" not in log
