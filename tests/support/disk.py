"""A disk that a test can fill: a file system in memory, whose size is made what it holds, and large again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What an empty one may grow to; only what is written takes memory.
SIZE_BYTES = 2 * 2**30


@contextmanager
def own_disk(folder: Path, size_bytes: int = SIZE_BYTES) -> Iterator[Path]:
    """A file system of its own at `folder`. An ordinary folder where none can be mounted."""
    folder.mkdir(parents=True)
    mounted = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path, size_bytes: int = SIZE_BYTES) -> Iterator[None]:
    """Not one more page can be written to an own_disk(), until the block ends."""
    # Somebody may write between the look and the mount.
    while not _mount("-o", f"remount,size={_used_bytes(disk)}", str(disk)):
        pass
    try:
        yield
    finally:
        assert _mount("-o", f"remount,size={size_bytes}", str(disk))


def _used_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
