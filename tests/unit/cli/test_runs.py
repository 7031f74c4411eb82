"""Runs on the command line: metrics, logs, and the times that they are asked by."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from saucer.lib.ids import new_id
from saucer.training.v1 import training_pb2
from tests.support.cli import Cli
from tests.unit.cli.script import DEPLOYMENT, RUN, TASK, Script


@pytest.mark.parametrize("identifier", [RUN, TASK])
def test_metrics_are_printed_and_drawn_by_run_or_task(cli: Cli, tmp_path: Path, identifier: str) -> None:
    assert "loss 0.25  lr 0.1  map_50 0.5" in cli("run", "metrics", identifier)
    assert len(cli.json("run", "metrics", identifier)) == 4
    cli("run", "metrics", identifier, "--follow", "--plot", str(tmp_path / "curve.png"))
    assert Image.open(tmp_path / "curve.png").format == "PNG"
    said = cli.fails("run", "metrics", identifier, "--plot", str(tmp_path / "curve.pdf"), code=2)
    assert "must end in .png or .svg." in said


def test_an_id_of_nothing_is_not_found(cli: Cli) -> None:
    assert "NOT_FOUND" in cli.fails("run", "metrics", new_id())


def test_the_log_is_searched_or_followed(cli: Cli, script: Script) -> None:
    assert "WARNING  lost it" in cli(
        "run", "logs", RUN, "--keyword", "lost", "--level", "warning", "--since", "2026-01-02"
    )
    (request,) = script.requests
    assert list(request.keywords) == ["lost"]
    assert request.min_level == training_pb2.LOG_LEVEL_WARNING
    assert request.HasField("start_time")


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("2026-01-02", "2026-01-01T15:00:00Z"),
        ("2026-01-02T09:30", "2026-01-02T00:30:00Z"),
        ("2026-01-02 09:30:15", "2026-01-02T00:30:15Z"),
        ("2026-01-02T09:30:00Z", "2026-01-02T09:30:00Z"),
        ("2026-01-02T09:30+01:00", "2026-01-02T08:30:00Z"),
    ],
)
def test_a_time_is_local_as_times_are_printed_unless_it_states_its_zone(
    cli: Cli, script: Script, given: str, sent: str
) -> None:
    for asks in (("run", "logs", RUN), ("deployment", "traffic", DEPLOYMENT)):
        cli(*asks, "--since", given, "--until", given)
        asked = script.requests[-1]
        assert [asked.start_time.ToJsonString(), asked.end_time.ToJsonString()] == [sent, sent]


@pytest.mark.parametrize("given", ["yesterday", "2026-13-01", "09:30", "0001-01-01T00:00+14:00"])
def test_what_is_no_time_is_refused_with_examples(cli: Cli, given: str) -> None:
    assert "2027-01-31T14:30" in cli.fails("run", "logs", RUN, "--since", given, code=2)


def test_a_log_that_breaks_off_is_followed_from_where_it_was(cli: Cli) -> None:
    assert [line["text"] for line in cli.lines("run", "logs", RUN, "--follow")] == ["line 1", "line 2", "line 3"]
    cli.fails("run", "logs", RUN, "--follow", "--keyword", "x", code=2)
