"""Where TensorRT keeps the engines that it makes of a graph, so that only a model's first load waits for them.

TensorRT names an engine by the graph's structure alone, and loads one as code. So the engines of each graph are kept
apart, by the hash of its bytes, weights included, where no other user of the machine can write. ONNX Runtime writes an
engine in place and takes whatever lies there. So each process has a folder of its own to write in, and what it has
written is kept as one file, under its name only once it is whole.
"""

import hashlib
import os
import shutil
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from .errors import RuntimeUnusable

MAX_GRAPHS = 32
"""Of which engines are kept; beyond it those go that were not asked for the longest."""


class Engines:
    """Of one graph, in one process; those that are kept are there from the beginning."""

    def __init__(self, graph: Path) -> None:
        """Raises RuntimeUnusable if another user has where they are kept."""
        home = _home()
        name = hashlib.sha256(graph.read_bytes()).hexdigest()
        self._kept = home / f"{name}.tar"
        self._own = tempfile.TemporaryDirectory(prefix=f"{name}.", dir=home)
        try:
            os.utime(self._kept)
            with tarfile.open(self._kept) as kept:
                kept.extractall(self.folder, filter="data")
        except FileNotFoundError:
            pass  # another process may be removing it
        except (OSError, tarfile.TarError) as error:
            # Without half of it, engines are made as for a first load.
            self._own.cleanup()
            self._own = tempfile.TemporaryDirectory(prefix=f"{name}.", dir=home)
            if isinstance(error, tarfile.TarError):
                self._kept.unlink(missing_ok=True)
        self._found = self._written()
        _forget_oldest(home)

    @property
    def folder(self) -> Path:
        """Where TensorRT may read and write."""
        return Path(self._own.name)

    def keep(self) -> None:
        """For all later loads: what is in the folder, if that is new. Nothing may be writing there meanwhile.

        A disk that does not take it is no failure.
        """
        written = self._written()
        if written == self._found:
            return
        aside = self.folder.with_name(f"{self.folder.name}.tar")
        with suppress(OSError):
            with aside.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w") as archive:
                    for entry in self.folder.iterdir():
                        archive.add(entry, entry.name)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._kept)
            self._found = written
        aside.unlink(missing_ok=True)

    def _written(self) -> set[tuple[str, int, int]]:
        """Names, sizes and times of what is in the folder."""
        found = ((entry.name, entry.stat()) for entry in self.folder.iterdir())
        return {(name, status.st_size, status.st_mtime_ns) for name, status in found}


def _home() -> Path:
    home = Path(tempfile.gettempdir()) / f"saucer-engines-{os.getuid()}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if found.st_uid != os.getuid() or not home.is_dir() or home.is_symlink() or found.st_mode & 0o077:
        raise RuntimeUnusable(f"engines cannot be kept: {home} is open to other users")
    return home


def _forget_oldest(home: Path) -> None:
    """Of what is kept; and of processes' own folders, some of which may have been killed."""
    entries = sorted(home.iterdir(), key=_asked_for_ns, reverse=True)
    for old in [entry for entry in entries if not entry.is_dir()][MAX_GRAPHS:]:
        old.unlink(missing_ok=True)
    for old in [entry for entry in entries if entry.is_dir()][MAX_GRAPHS:]:
        shutil.rmtree(old, ignore_errors=True)


def _asked_for_ns(entry: Path) -> int:
    # Another process may be removing it.
    with suppress(FileNotFoundError):
        return entry.stat().st_mtime_ns
    return 0
