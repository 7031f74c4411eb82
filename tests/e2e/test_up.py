"""`saucer up` in the foreground, stopped by Ctrl-C, started again."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.stack import PROJECT

START_S = 90.0
STOP_S = 10.0


@contextmanager
def up(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A stack in a session of its own, until it says that it is up."""
    (folder / "profile.json").unlink(missing_ok=True)
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


def command(folder: Path, *arguments: str) -> list[dict[str, object]] | dict[str, object]:
    saucer = Path(sys.executable).with_name("saucer")
    profile = ["--profile", str(folder / "profile.json"), "--json"]
    done = subprocess.run([saucer, *arguments, *profile], capture_output=True, text=True, check=True)
    answer: list[dict[str, object]] | dict[str, object] = json.loads(done.stdout)
    return answer


def test_ctrl_c_stops_everything_within_ten_seconds_and_a_second_start_finds_everything(servers_dir: Path) -> None:
    folder = servers_dir / "up"
    with up(folder) as process:
        command(folder, "account", "create", "--name", "kept")
        before = command(folder, "account", "list")
        assert processes_of(folder)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=STOP_S)
        assert process.returncode == 0
        assert processes_of(folder) == []
    with up(folder) as process:
        assert command(folder, "account", "list") == before
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=STOP_S)
    assert processes_of(folder) == []
