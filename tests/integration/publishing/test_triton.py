"""Triton itself, through publishing's client and repository, with a model that has no network (tests/support)."""

import asyncio
import errno
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from unittest.mock import Mock

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from saucer.local.servers import TritonServer
from saucer.local.triton_env import TritonEnvironment
from saucer.publishing import repository
from saucer.publishing.triton import (
    CONTROL_HEADER,
    InferRefused,
    ModelFailed,
    ModelState,
    Report,
    TritonClient,
    TritonUnavailable,
)
from saucer.serving.choosing import Choice
from saucer.serving.runtime import EVALUATED_WITH
from tests.support.triton_models import echo_config, write_echo

Write = Callable[..., None]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.node.name
    return name[:100]


@pytest.fixture
def write(triton: TritonServer, model: str, tmp_path: Path) -> Write:
    """`write(version, ...)` writes a version of this test's model; see write_echo."""

    def write_version(version: int, **options: object) -> None:
        write_echo(triton.repository, model, version, tmp_path, **options)  # type: ignore[arg-type] # passed through

    return write_version


@pytest.fixture
async def own_server(tmp_path: Path, triton_environment: TritonEnvironment) -> AsyncIterator[TritonServer]:
    """A server that a test may kill."""
    server = TritonServer(tmp_path / "triton", tmp_path / "repository", triton_environment)
    await server.start()
    yield server
    await server.stop()


def shared_memory(server: TritonServer) -> set[str]:
    """Of one server; others may run at the same time."""
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/(saucer_\S+)", maps))


def left_of(used: set[str]) -> set[str]:
    return used & {path.name for path in Path("/dev/shm").iterdir()}


async def serving_process(client: TritonClient, model: str, version: str = "") -> int:
    return int((await client.infer(model, b"pid", version)).labels[0])


async def test_a_loaded_model_answers_boxes_scores_and_labels(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(7)
    await triton_client.load(model)
    found = await triton_client.infer(model, b"3")
    np.testing.assert_array_equal(found.boxes, np.tile(np.arange(4, dtype=np.float32), (3, 1)))
    assert found.scores.tolist() == [0.5, 0.5, 0.5]
    assert found.labels.tolist() == [7, 7, 7]
    assert [a.dtype.name for a in (found.boxes, found.scores, found.labels)] == ["float32", "float32", "int32"]
    assert found.version == "7"
    assert await triton_client.ready(model, "7")
    assert ModelState(model, "7", "READY", "") in await triton_client.index()


async def test_a_model_from_before_reports_says_nothing_and_serves_with_the_runtime_of_evaluations(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    assert await triton_client.report(model) == Report("", Choice(EVALUATED_WITH), ())


async def test_an_image_without_objects_answers_empty_arrays(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    found = await triton_client.infer(model, b"0")
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))


async def test_a_refused_image_and_a_failing_model_are_told_apart(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    with pytest.raises(InferRefused, match=r"^IMAGE: not an image$"):
        await triton_client.infer(model, b"refuse")
    with pytest.raises(ModelFailed, match=r"ValueError: a fault of the model$"):
        await triton_client.infer(model, b"raise")
    assert await triton_client.probe(model, b"1") is None
    assert await triton_client.probe(model, b"refuse") == "IMAGE: not an image"


async def test_a_model_or_version_that_is_not_loaded_has_failed(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    with pytest.raises(ModelFailed, match="unknown model"):
        await triton_client.infer(model, b"1")
    with pytest.raises(ModelFailed, match="failed to load"):
        await triton_client.load(model)
    assert not await triton_client.ready(model)
    write(1)
    await triton_client.load(model)
    with pytest.raises(ModelFailed, match="version 2 is not found"):
        await triton_client.infer(model, b"1", "2")


async def test_a_model_that_does_not_answer_in_time_has_failed(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    process = await serving_process(triton_client, model)
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(ModelFailed, match=r"no answer within 0.2 s"):
            await triton_client.infer(model, b"1", timeout_s=0.2)
    finally:
        os.kill(process, signal.SIGCONT)


async def test_versions_replace_each_other_under_load_without_a_failed_request(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    answered: list[str] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            answered.append((await triton_client.infer(model, b"2")).version)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        for version in (2, 3, 4):
            write(version)
            await triton_client.load(model)
            assert (await triton_client.infer(model, b"1")).version == str(version)
        stop.set()
    assert set(answered) == {"1", "2", "3", "4"}


async def test_a_version_that_runs_is_not_loaded_again_when_another_comes_or_goes(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    process = await serving_process(triton_client, model)
    write(2, versions=[1, 2])
    await triton_client.load(model)
    assert await serving_process(triton_client, model, "1") == process
    assert await serving_process(triton_client, model, "2") != process
    write(2, versions=[1])
    await triton_client.load(model)
    assert await serving_process(triton_client, model) == process


async def test_a_version_that_fails_to_load_leaves_the_old_one_serving(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    process = await serving_process(triton_client, model)
    write(2, broken=True)
    with pytest.raises(ModelFailed, match="ImportError: a fault at load"):
        await triton_client.load(model)
    assert await serving_process(triton_client, model) == process
    assert not await triton_client.ready(model, "2")


async def test_what_runs_is_not_loaded_again_by_the_same_load(
    triton: TritonServer, triton_client: TritonClient, model: str, write: Write
) -> None:
    for _ in range(2):
        write(1)
        await triton_client.load(model)
    assert triton.log_path.read_text().count(f"successfully loaded '{model}'") == 1


async def test_what_failed_to_load_is_tried_again_by_the_same_load(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    for _ in range(2):
        write(1, broken=True)
        with pytest.raises(ModelFailed, match="ImportError: a fault at load"):
            await triton_client.load(model)


async def test_a_killed_model_process_is_found_by_a_probe_and_healed_by_unload_and_load(
    triton_client: TritonClient, model: str, write: Write
) -> None:
    write(1)
    await triton_client.load(model)
    os.kill(await serving_process(triton_client, model), signal.SIGKILL)
    assert "not healthy" in (await triton_client.probe(model, b"1") or "")
    assert await triton_client.ready(model)  # which is why health is judged by an inference
    await triton_client.unload(model, drain_s=0.5)
    await triton_client.load(model)
    assert await triton_client.probe(model, b"1") is None


async def test_an_unloaded_model_is_gone_and_its_request_in_flight_is_answered(
    triton_client: TritonClient, model: str, write: Write, tmp_path: Path
) -> None:
    write(1)
    await triton_client.load(model)
    began, go = tmp_path / "began", tmp_path / "go"
    os.mkfifo(began)
    os.mkfifo(go)
    in_flight = asyncio.create_task(triton_client.infer(model, f"wait {tmp_path}".encode()))
    await asyncio.to_thread(began.read_bytes)
    assert not await triton_client.unload(model, drain_s=0.2)
    await asyncio.to_thread(go.write_bytes, b"")
    assert (await in_flight).version == "1"
    assert await triton_client.unload(model)
    with pytest.raises(ModelFailed, match="no available versions"):
        await triton_client.infer(model, b"1")


async def test_a_killed_server_starts_again_and_has_forgotten_its_models(
    own_server: TritonServer, tmp_path: Path
) -> None:
    write_echo(own_server.repository, "echo", 1, tmp_path)
    async with TritonClient(own_server.grpc_address, own_server.control_key) as client:
        await client.load("echo")
        os.kill(own_server.pid, signal.SIGKILL)  # the server alone: its children stay
        assert await own_server.wait() == -signal.SIGKILL
        with pytest.raises(TritonUnavailable):
            await client.infer("echo", b"1")
        assert not await client.live(timeout_s=0.2)
        await own_server.start()
        assert await client.live()
        assert await client.index() == [ModelState("echo", "", "", "")]
        assert "unknown model" in (await client.probe("echo", b"1") or "")
        await client.load("echo")
        assert await client.probe("echo", b"1") is None


async def test_a_stopped_server_leaves_no_process_and_no_shared_memory(
    own_server: TritonServer, tmp_path: Path
) -> None:
    write_echo(own_server.repository, "echo", 1, tmp_path)
    async with TritonClient(own_server.grpc_address, own_server.control_key) as client:
        await client.load("echo")
        process = await serving_process(client, "echo")
    used = shared_memory(own_server)
    assert used
    await own_server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert not left_of(used)


async def test_a_server_that_hangs_is_unavailable_to_a_load_and_to_a_health_check(
    own_server: TritonServer, tmp_path: Path
) -> None:
    write_echo(own_server.repository, "echo", 1, tmp_path)
    async with TritonClient(own_server.grpc_address, own_server.control_key) as client:
        assert await client.live()
        os.kill(own_server.pid, signal.SIGSTOP)
        with pytest.raises(TritonUnavailable, match=r"echo did not load within 0.2 s"):
            await client.load("echo", timeout_s=0.2)
        assert not await client.live(timeout_s=0.2)
        os.kill(own_server.pid, signal.SIGCONT)


async def test_control_calls_and_shared_memory_are_closed_without_the_key(triton: TritonServer) -> None:
    async with TritonClient(triton.grpc_address, "guessed") as stranger:
        with pytest.raises(TritonUnavailable, match="restricted"):
            await stranger.load("any")
        with pytest.raises(TritonUnavailable, match="restricted"):
            await stranger.unload("any")
        with pytest.raises(TritonUnavailable, match="restricted"):
            await stranger.index()
    async with grpc.aio.insecure_channel(triton.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="restricted"):
            await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{triton.ports['http']}") as outside:
        assert (await outside.get("/v2/health/live")).status_code == 200
        for path in ("repository/index", "repository/models/any/load", "repository/models/any/unload"):
            for headers in (
                {},
                {CONTROL_HEADER: "guessed"},
                {CONTROL_HEADER.removeprefix("triton-grpc-protocol-"): "guessed"},
            ):
                answer = await outside.post(f"/v2/{path}", headers=headers)
                assert (answer.status_code, "restricted" in answer.text) == (403, True), path
        assert (await outside.get("/v2/systemsharedmemory/status")).status_code == 403


def test_a_written_version_is_complete_and_carries_no_bytecode(tmp_path: Path) -> None:
    source = tmp_path / "serving"
    (source / "__pycache__").mkdir(parents=True)
    (source / "__pycache__" / "x.pyc").touch()
    (source / "triton_model.py").write_text("code")
    files = tmp_path / "files"
    files.mkdir()
    for name in ("model.onnx", "model.json", "model.py", "other"):
        (files / name).write_text(f"given {name}")
    folder = repository.write_version(
        tmp_path / "repository", "m", 3, files=files, serving_source=source, config="config"
    )
    assert folder == tmp_path / "repository" / "m" / "3"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.stat().st_size} == {
        "model.json",
        "model.onnx",
        "model.py",
        "serving",
        "serving/triton_model.py",
    }
    assert (folder / "model.py").read_text() == "code"
    # A file, so that Python finds no folder to write bytecode to.
    assert (folder / "__pycache__").is_file()
    assert (folder.parent / "config.pbtxt").read_text() == "config"


def test_a_version_that_exists_is_kept_while_its_configuration_changes(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    write_echo(root, "m", 1, tmp_path)
    before = (root / "m" / "1").stat()
    write_echo(root, "m", 1, tmp_path, broken=True, versions=[1, 2])
    assert (root / "m" / "1").stat() == before
    assert (root / "m" / "config.pbtxt").read_text() == echo_config("m", [1, 2])


@pytest.mark.parametrize("damage", [b"\xff\xfe not UTF-8", None], ids=["its bytes", "EIO"])
def test_a_configuration_that_the_disk_damaged_is_written_anew(
    damage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_echo(tmp_path, "m", 1, tmp_path)
    config = tmp_path / "m" / "config.pbtxt"
    with monkeypatch.context() as patch:
        if damage is None:
            config.write_text("lost")
            patch.setattr(Path, "read_bytes", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
            patch.setattr(Path, "read_text", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        else:
            config.write_bytes(damage)
        repository.write_config(tmp_path, "m", "whole")
    assert config.read_text() == "whole"


def test_a_version_that_cannot_be_written_leaves_nothing_that_looks_like_one(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    write_echo(root, "m", 1, tmp_path)
    (tmp_path / "echo" / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError):
        repository.write_version(root, "m", 2, files=tmp_path / "echo", serving_source=tmp_path / "echo", config="new")
    assert repository.list_versions(root, "m") == [1]
    assert (root / "m" / "config.pbtxt").read_text() == echo_config("m", [1])
    write_echo(root, "m", 2, tmp_path)
    assert repository.list_versions(root, "m") == [1, 2]


def test_versions_are_listed_in_order_and_the_last_one_takes_its_model_along(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    assert repository.list_models(root) == []
    assert repository.list_versions(root, "m") == []
    for version in (10, 2, 1):
        write_echo(root, "m", version, tmp_path)
    assert repository.list_versions(root, "m") == [1, 2, 10]
    assert repository.list_models(root) == ["m"]
    for version in (10, 2, 2):
        repository.remove_version(root, "m", version)
    assert repository.list_versions(root, "m") == [1]
    repository.remove_version(root, "m", 1)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../m", "a/b", ".hidden", "a b", "ä", "a" * 129])
def test_a_model_name_that_is_no_plain_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    for call in (
        lambda: repository.write_config(tmp_path, name, ""),
        lambda: repository.list_versions(tmp_path, name),
        lambda: repository.remove_version(tmp_path, name, 1),
    ):
        with pytest.raises(ValueError, match="is not a model name"):
            call()


def test_a_version_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a version is 1 or more, not 0"):
        repository.remove_version(tmp_path, "m", 0)
