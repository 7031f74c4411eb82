"""Models on the command line: downloaded, deleted."""

from pathlib import Path

from saucer.training.v1 import training_pb2
from tests.support.cli import Cli
from tests.unit.cli.script import MODEL, ONNX, TASK, Script


def test_a_model_is_deleted_by_its_id_or_its_tasks(cli: Cli, script: Script) -> None:
    for identifier in (MODEL, TASK):
        cli("model", "delete", identifier)
        assert script.requests[-1] == training_pb2.DeleteModelRequest(model_id=MODEL)


def test_a_model_is_downloaded_and_checked(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "model"
    cli("model", "download", TASK, "model.onnx", "--output", str(target))
    assert (target / "model.onnx").read_bytes() == ONNX
    assert "checksum" in cli.fails("model", "download", MODEL, "bad.txt", "--output", str(target))
    assert [file.name for file in target.iterdir()] == ["model.onnx"]
    assert "it has model.onnx" in cli.fails("model", "download", MODEL, "other", "--output", str(target))
