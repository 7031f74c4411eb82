"""Engines are of one graph and of one user, whole, and of so many graphs at most."""

import errno
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from saucer.serving import engines, runtime
from saucer.serving.engines import Engines
from saucer.serving.errors import RuntimeUnusable
from saucer.serving.runtime import Compute, Network, Outputs, Provider


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"saucer-engines-{os.getuid()}"


def graph(folder: Path, weights: str) -> Path:
    path = folder / "model.onnx"
    path.write_text(weights)
    return path


def write(engines: Engines, engine: str = "whole") -> Engines:
    """As TensorRT does, in place."""
    (engines.folder / "graph.engine").write_text(engine)
    (engines.folder / "graph.profile").write_text("1 to 8")
    return engines


def found(path: Path) -> dict[str, str]:
    """By the next process."""
    engines = Engines(path)
    return {file.name: file.read_text() for file in engines.folder.iterdir()}


def test_two_graphs_of_one_structure_share_no_engine(home: Path, tmp_path: Path) -> None:
    write(Engines(graph(tmp_path, "one"))).keep()
    assert found(graph(tmp_path, "another")) == {}
    assert found(graph(tmp_path, "one")) == {"graph.engine": "whole", "graph.profile": "1 to 8"}


def test_what_a_process_has_begun_to_write_is_taken_by_no_other_before_it_is_whole(home: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "one")
    killed = write(Engines(path), "half-wr")
    assert found(path) == {}
    write(Engines(path)).keep()
    assert found(path)["graph.engine"] == "whole"
    again = write(Engines(path), "half-wr")
    assert found(path)["graph.engine"] == "whole", "that it writes in place of one that is kept is not seen either"
    assert killed.folder != again.folder


def test_of_two_that_are_kept_at_once_one_is_and_whole(home: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "one")
    first, second = write(Engines(path), "first"), write(Engines(path), "second")
    second.keep()
    first.keep()
    assert found(path) == {"graph.engine": "first", "graph.profile": "1 to 8"}


def test_what_the_disk_does_not_take_is_not_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph(tmp_path, "one")
    made = write(Engines(path))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        made.keep()
    assert found(path) == {}
    assert list(home.iterdir()) == [made.folder]


def test_what_is_as_it_was_found_is_not_written_again(home: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "one")
    write(Engines(path)).keep()
    (kept,) = home.glob("*.tar")
    written = kept.stat().st_ino
    again = Engines(path)
    again.keep()
    assert kept.stat().st_ino == written
    for engine in ("another", "whole"):
        write(again, engine).keep()
        assert (kept.stat().st_ino != written, found(path)["graph.engine"]) == (True, engine)
        written = kept.stat().st_ino
    again.keep()
    assert kept.stat().st_ino == written


def test_what_is_kept_and_cannot_be_read_is_forgotten(home: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "one")
    write(Engines(path)).keep()
    (kept,) = home.glob("*.tar")
    with tarfile.open(kept) as archive:
        last = archive.getmembers()[-1]
    # In the middle of its last file.
    os.truncate(kept, last.offset_data + last.size - 1)
    assert found(path) == {}
    assert list(home.glob("*.tar")) == []


def test_what_is_kept_and_the_disk_does_not_take_once_more_is_left_for_later(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graph(tmp_path, "one")
    write(Engines(path)).keep()

    def full(archive: tarfile.TarFile, folder: Path, **_: object) -> None:
        (folder / "graph.engine").write_text("wh")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extractall", full)
        assert found(path) == {}
    assert found(path)["graph.engine"] == "whole"


def test_nobody_else_may_look_into_it(home: Path, tmp_path: Path) -> None:
    Engines(graph(tmp_path, "one"))
    assert home.stat().st_mode & 0o777 == 0o700


def open_to_others(home: Path) -> None:
    home.mkdir(mode=0o700)
    home.chmod(0o770)


def leads_elsewhere(home: Path) -> None:
    (home.parent / "elsewhere").mkdir(mode=0o700)
    home.symlink_to(home.parent / "elsewhere")


@pytest.mark.parametrize("prepare", [open_to_others, leads_elsewhere, Path.touch])
def test_a_folder_that_others_prepared_is_not_used(home: Path, tmp_path: Path, prepare: object) -> None:
    assert callable(prepare)
    prepare(home)
    with pytest.raises(RuntimeUnusable, match="is open to other users"):
        Engines(graph(tmp_path, "one"))


def test_of_many_graphs_the_engines_go_that_were_not_asked_for_the_longest(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "MAX_GRAPHS", 2)
    for age_s, weights in enumerate(("three", "two", "one")):
        made = write(Engines(graph(tmp_path, weights)))
        made.keep()
        for entry in home.iterdir():
            os.utime(entry, (1000 - age_s, 1000 - age_s))
        assert found(graph(tmp_path, "three")), "it is asked for again and again"
    assert not found(graph(tmp_path, "two"))
    assert found(graph(tmp_path, "one"))
    killed = home / "killed"
    killed.mkdir()
    os.utime(killed, (1, 1))
    assert found(graph(tmp_path, "one"))
    assert not killed.exists()


def test_an_engine_is_kept_once_it_has_answered_the_batch_that_it_was_made_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, threads: int, first: Provider, *others: Provider) -> Compute:
        def run(images: NDArray[np.uint8]) -> Outputs:
            (Path(first[1]["trt_engine_cache_path"]) / "graph.engine").write_text(f"for {len(images)}")
            return np.zeros(0, np.float32), np.zeros(0, np.float32)

        return run

    monkeypatch.setattr(runtime, "_onnxruntime", load)
    path = graph(tmp_path, "one")
    network = Network(path, 1, "onnxruntime_tensorrt")
    assert found(path) == {}
    for batch, kept in ((1, 1), (8, 8), (4, 8)):
        network(np.zeros((batch, 2, 2, 3), np.uint8))
        assert found(path) == {"graph.engine": f"for {kept}"}
