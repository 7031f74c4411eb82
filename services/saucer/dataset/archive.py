"""Unpacks an uploaded archive into a private folder, trusting nothing that its headers say.

Everything is counted while it is written. Any refusal removes the whole folder, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from saucer.dataset.report import ImportReason, ImportRefusedError, printable

# Files and folders together. Above it: refused, too_many_files.
MAX_FILES = 400_000
# Sum of all files as written. Above it: refused, unpacked_too_large.
MAX_UNPACKED_BYTES = 64 * 1024**3
# Bytes written ÷ bytes of the archive. Photographs hardly shrink and label files shrink ten- to fiftyfold. Above it:
# refused, compression_ratio — but only once RATIO_FLOOR_BYTES are written, for small archives of text shrink well.
MAX_COMPRESSION_RATIO = 100
RATIO_FLOOR_BYTES = 64 * 1024**2
# A path's length, its parts, and one part (the usual file systems' own bound). Above it: refused, bad_name.
MAX_PATH_BYTES = 1024
MAX_PATH_PARTS = 32
MAX_PART_BYTES = 255
# What tar may spend between two files (headers, pax records, padding), and a zip's whole directory: both are read into
# memory by the standard library. Above it: refused, unreadable_archive.
MAX_TAR_HEADER_BYTES = 1024**2
MAX_ZIP_DIRECTORY_BYTES = 256 * 1024**2

_CHUNK_BYTES = 256 * 1024
_TAR_READ_BYTES = 64 * 1024
_ZIP_ENTRY = b"PK\x01\x02"
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP_START = b"\x1f\x8b"
_ENCRYPTED = 0x1
_UTF8_NAME = 0x800
# What the standard library raises on a damaged archive.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    NotImplementedError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    max_files: int = MAX_FILES
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES
    max_compression_ratio: int = MAX_COMPRESSION_RATIO
    ratio_floor_bytes: int = RATIO_FLOOR_BYTES


def unpack(archive: Path, into: Path, limits: ArchiveLimits | None = None) -> None:
    """Unpacks a zip, tar or tar.gz (told by content, not by name) into the new folder `into`.

    Files get mode 600 and folders 700; owners, times and links are not taken over.

    Raises:
        ImportRefusedError: with the reason; `into` is gone then, as after any other error.
        FileExistsError: `into` exists.
    """
    into.mkdir(mode=0o700)
    try:
        with archive.open("rb") as source:
            start = source.read(4)
            source.seek(0)
            target = _Target(into, limits or ArchiveLimits(), archive.stat().st_size)
            if start in _ZIP_STARTS:
                _unpack_zip(source, target)
            elif start[:2] == _GZIP_START:
                with gzip.GzipFile(fileobj=source) as plain:
                    _unpack_tar(plain, target)
            else:
                _unpack_tar(source, target)
    except _DAMAGED as error:
        shutil.rmtree(into)
        raise _damaged(str(error)) from error
    except BaseException:
        shutil.rmtree(into)
        raise


def safe_parts(name: str) -> list[str] | None:
    """Splits a relative path of a user's; None if it is absolute, climbs, or holds a NUL. Backslashes separate too."""
    slashed = name.replace("\\", "/")
    if slashed.startswith("/") or "\0" in slashed or slashed[1:2] == ":":
        return None
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    return None if ".." in parts else parts


class _Target:
    """The folder that is written to, and what has been written so far."""

    def __init__(self, folder: Path, limits: ArchiveLimits, archive_bytes: int) -> None:
        self._folder = folder
        self._limits = limits
        self._max_by_ratio = max(limits.ratio_floor_bytes, limits.max_compression_ratio * archive_bytes)
        self._files = 0
        self._bytes = 0
        self._made: set[tuple[str, ...]] = {()}

    @property
    def max_files(self) -> int:
        return self._limits.max_files

    def make_folder(self, name: str) -> None:
        self._make_folders(tuple(_checked_parts(name)))

    def write(self, name: str, chunks: Iterator[bytes]) -> None:
        parts = _checked_parts(name)
        if not parts:
            raise ImportRefusedError(ImportReason.BAD_NAME, "The archive holds a file without a name.")
        self._make_folders(tuple(parts[:-1]))
        self._count_file()
        try:
            fd = os.open(self._folder.joinpath(*parts), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError as error:
            raise _twice(name) from error
        with os.fdopen(fd, "wb") as file:
            for chunk in chunks:
                self._count_bytes(len(chunk))
                file.write(chunk)

    def _make_folders(self, parts: tuple[str, ...]) -> None:
        # Each new folder counts as a file: a deep path must not make more of them than the limit.
        for depth in range(1, len(parts) + 1):
            if parts[:depth] not in self._made:
                self._count_file()
                try:
                    self._folder.joinpath(*parts[:depth]).mkdir(mode=0o700)
                except FileExistsError as error:
                    raise _twice("/".join(parts[:depth])) from error
                self._made.add(parts[:depth])

    def _count_file(self) -> None:
        self._files += 1
        if self._files > self._limits.max_files:
            raise _too_many_files(self._limits.max_files)

    def _count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._limits.max_unpacked_bytes:
            raise ImportRefusedError(
                ImportReason.UNPACKED_TOO_LARGE,
                f"The archive unpacks to more than {self._limits.max_unpacked_bytes:,} bytes.",
            )
        if self._bytes > self._max_by_ratio:
            raise ImportRefusedError(
                ImportReason.COMPRESSION_RATIO,
                f"The archive unpacks to more than {self._limits.max_compression_ratio} times its own size.",
            )


def _unpack_zip(source: IO[bytes], target: _Target) -> None:
    try:
        with _reading():
            archive = zipfile.ZipFile(_ZipSource(source, target.max_files))
        with archive:
            for member in archive.infolist():
                _unpack_zip_member(archive, member, target)
    except UnicodeDecodeError as error:
        raise _not_utf8() from error


def _unpack_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: _Target) -> None:
    name = _zip_name(member)
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _link_or_device(name)
    if member.flag_bits & _ENCRYPTED:
        raise ImportRefusedError(ImportReason.ENCRYPTED_ARCHIVE, f"'{printable(name)}' in the archive is encrypted.")
    if name.endswith(("/", "\\")):
        target.make_folder(name)
    else:
        with _reading():
            file = archive.open(member)
        with file:
            target.write(name, _chunks(file))


class _ZipSource(io.RawIOBase):
    """A zip file that refuses to be read when its directory is too long.

    zipfile reads the directory in one call and makes an object of each entry before anybody can count them; each entry
    starts with a signature, so counting signatures in what is read bounds the objects beforehand.
    """

    def __init__(self, source: IO[bytes], max_files: int) -> None:
        self._source = source
        self._max_files = max_files

    def read(self, size: int = -1, /) -> bytes:
        if size > MAX_ZIP_DIRECTORY_BYTES:
            raise _damaged("its directory is too long")
        # zipfile asks for "the rest" only when it looks for the end record, in the last 64 KiB.
        data = self._source.read(size if size >= 0 else MAX_ZIP_DIRECTORY_BYTES)
        if data.count(_ZIP_ENTRY) > self._max_files:
            raise _too_many_files(self._max_files)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_SET and offset < 0:
            raise _damaged("its directory points before its start")
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _zip_name(member: zipfile.ZipInfo) -> str:
    if member.flag_bits & _UTF8_NAME:
        return member.orig_filename
    # Many packers write UTF-8 without saying so; zipfile has read the bytes as code page 437.
    return member.orig_filename.encode("cp437").decode("utf-8")


def _unpack_tar(source: IO[bytes] | gzip.GzipFile, target: _Target) -> None:
    bounded = _TarSource(source)
    try:
        # Read as a stream, so that tarfile never seeks in compressed data. Opening reads the first header.
        with contextlib.ExitStack() as stack:
            with _reading(), bounded.at_most(MAX_TAR_HEADER_BYTES):
                archive = stack.enter_context(
                    tarfile.open(fileobj=bounded, mode="r|", bufsize=_TAR_READ_BYTES, encoding="utf-8", errors="strict")
                )
            while (member := _next_member(archive, bounded)) is not None:
                if member.isdir():
                    target.make_folder(member.name)
                elif member.isfile() and not member.issparse():
                    file = archive.extractfile(member)
                    if file is not None:
                        target.write(member.name, _chunks(file, member.size))
                else:
                    raise _link_or_device(member.name)
    except UnicodeDecodeError as error:
        raise _not_utf8() from error
    except tarfile.ReadError as error:
        if bounded.first_member_seen:
            raise
        raise ImportRefusedError(
            ImportReason.UNSUPPORTED_ARCHIVE, "The upload is not a zip, tar or tar.gz archive."
        ) from error


def _next_member(archive: tarfile.TarFile, bounded: _TarSource) -> tarfile.TarInfo | None:
    # A pax record may claim any length, and tarfile reads it into memory: so what lies between two files is bounded.
    with _reading(), bounded.at_most(MAX_TAR_HEADER_BYTES):
        member = archive.next()
    bounded.first_member_seen = True
    # tarfile remembers all members otherwise; the attribute is public, but missing in the type stubs.
    archive.members.clear()  # type: ignore[attr-defined]
    if member is not None and member.size < 0:
        raise _damaged("a file of negative size")
    return member


class _TarSource(io.RawIOBase):
    """A tar stream that refuses, within `at_most(n)`, to give more than n bytes (and what one read-ahead adds)."""

    def __init__(self, source: IO[bytes] | gzip.GzipFile) -> None:
        self._source = source
        self._left: int | None = None
        self.first_member_seen = False

    def at_most(self, count: int) -> _TarSource:
        self._left = count + _TAR_READ_BYTES
        return self

    def __enter__(self) -> _TarSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._left = None

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise _damaged("a header is too long")
        return data

    def readable(self) -> bool:
        return True


def _chunks(file: IO[bytes], expected: int | None = None) -> Iterator[bytes]:
    total = 0
    while chunk := _read(file):
        total += len(chunk)
        yield chunk
    if expected is not None and total != expected:
        raise _damaged("it ends in the middle of a file")


def _read(file: IO[bytes]) -> bytes:
    with _reading():
        return file.read(_CHUNK_BYTES)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever the standard library makes of damaged bytes is their damage, and not the disk's: bzip2 raises OSError
    without a number, places that no file has are EINVAL or ValueError, and numbers that are none ValueError."""
    try:
        yield
    except UnicodeDecodeError:  # of a name
        raise
    except (ValueError, OverflowError) as error:
        raise _damaged(str(error)) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(error.strerror or str(error)) from error


def _checked_parts(name: str) -> list[str]:
    parts = safe_parts(name)
    if parts is None:
        raise ImportRefusedError(
            ImportReason.CLIMBING_PATH, f"'{printable(name)}' in the archive leads out of its folder."
        )
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError as error:
        raise _not_utf8() from error
    if (
        len(parts) > MAX_PATH_PARTS
        or sum(sizes) + len(sizes) > MAX_PATH_BYTES
        or max(sizes, default=0) > MAX_PART_BYTES
    ):
        raise ImportRefusedError(ImportReason.BAD_NAME, f"The path '{printable(name)}' in the archive is too long.")
    return parts


def _damaged(detail: str) -> ImportRefusedError:
    return ImportRefusedError(ImportReason.UNREADABLE_ARCHIVE, f"The archive cannot be read: {printable(detail)}.")


def _too_many_files(limit: int) -> ImportRefusedError:
    return ImportRefusedError(ImportReason.TOO_MANY_FILES, f"The archive holds more than {limit:,} files and folders.")


def _link_or_device(name: str) -> ImportRefusedError:
    return ImportRefusedError(
        ImportReason.LINK_OR_DEVICE, f"'{printable(name)}' in the archive is neither a plain file nor a folder."
    )


def _twice(name: str) -> ImportRefusedError:
    return ImportRefusedError(ImportReason.DUPLICATE_FILE, f"The archive holds '{printable(name)}' twice.")


def _not_utf8() -> ImportRefusedError:
    return ImportRefusedError(ImportReason.BAD_NAME, "The archive holds a file name that is not UTF-8.")
