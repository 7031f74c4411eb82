"""What an uploaded archive can try, and that nothing of it stays behind."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

import pytest

from saucer.dataset.archive import ArchiveLimits, safe_parts, unpack
from saucer.dataset.report import ImportReason, ImportRefusedError

FILES = {"annotations.json": b"{}", "images/a.jpg": b"a" * 1000, "images/ü.jpg": b""}


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tar_of(path: Path, members: list[tarfile.TarInfo], data: bytes = b"", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # the mode is a parameter
        for member in members:
            archive.addfile(member, io.BytesIO(data[: member.size]))
    return path


def tar_member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member


def refusal(archive: Path, limits: ArchiveLimits | None = None) -> ImportReason:
    into = archive.parent / "into"
    with pytest.raises(ImportRefusedError) as caught:
        unpack(archive, into, limits)
    assert caught.value.sentence.endswith(".")
    assert str(archive.parent) not in caught.value.sentence
    assert not into.exists()
    assert {entry.name for entry in archive.parent.iterdir()} == {archive.name}
    return caught.value.reason


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_zip_is_unpacked(tmp_path: Path) -> None:
    unpack(zip_of(tmp_path / "a.zip", FILES), tmp_path / "into")
    assert files_below(tmp_path / "into") == FILES
    assert stat.S_IMODE((tmp_path / "into/images/a.jpg").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_is_unpacked_whatever_it_is_called(tmp_path: Path, mode: str, tar_format: int) -> None:
    files = FILES | {"long/" + "x" * 150 + "/" + "y" * 150: b"deep"}
    write(tmp_path / "source", files)
    with tarfile.open(tmp_path / "upload", mode, format=tar_format) as archive:  # type: ignore[call-overload]  # as above
        archive.add(tmp_path / "source", arcname=".")
    unpack(tmp_path / "upload", tmp_path / "into")
    assert files_below(tmp_path / "into") == files


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


CLIMBING = ["../a", "a/../../b", "/etc/a", "..\\a", "C:\\a", "\\\\host\\a", "a/.."]


@pytest.mark.parametrize("name", CLIMBING)
def test_a_zip_that_climbs_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    zip_of(archive, {"ok.txt": b"ok", "x" * len(name.encode()): b"evil"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"x" * len(name), name.encode()))
    assert refusal(archive) is ImportReason.CLIMBING_PATH


@pytest.mark.parametrize("name", CLIMBING)
def test_a_tar_that_climbs_is_refused(tmp_path: Path, name: str) -> None:
    archive = tar_of(tmp_path / "a.tar", [tar_member("ok"), tar_member(name, 4)], b"evil")
    assert refusal(archive) is ImportReason.CLIMBING_PATH


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_devices_pipes_and_sparse_files_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tar_of(tmp_path / "a.tar", [tar_member("ok"), tar_member("evil", kind=kind, link="/etc/passwd")])
    assert refusal(archive) is ImportReason.LINK_OR_DEVICE


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("evil")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    assert refusal(tmp_path / "a.zip") is ImportReason.LINK_OR_DEVICE


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_too_many_files_are_refused(tmp_path: Path, pack: str) -> None:
    names = [f"{n}" for n in range(11)]
    archive = tmp_path / "a"
    if pack == "zip":
        zip_of(archive, dict.fromkeys(names, b""))
    else:
        tar_of(archive, [tar_member(name) for name in names])
    assert refusal(archive, ArchiveLimits(max_files=10)) is ImportReason.TOO_MANY_FILES
    unpack(archive, tmp_path / "into", ArchiveLimits(max_files=11))


def test_folders_count_as_files(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a/b/c/d/e/f": b""})
    assert refusal(archive, ArchiveLimits(max_files=5)) is ImportReason.TOO_MANY_FILES


@pytest.mark.parametrize("pack", ["zip", "tar.gz"])
def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, pack: str) -> None:
    data = os.urandom(300_000)
    archive = tmp_path / "a"
    if pack == "zip":
        zip_of(archive, {"a": data, "b": data})
    else:
        tar_of(archive, [tar_member("a", len(data)), tar_member("b", len(data))], data, "w:gz")
    assert refusal(archive, ArchiveLimits(max_unpacked_bytes=599_999)) is ImportReason.UNPACKED_TOO_LARGE
    unpack(archive, tmp_path / "into", ArchiveLimits(max_unpacked_bytes=600_000))


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"zeros": b"\0" * 20_000_000})
    assert refusal(archive, ArchiveLimits(ratio_floor_bytes=1_000_000)) is ImportReason.COMPRESSION_RATIO


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"zeros": b"\0" * 5_000_000})
    data = archive.read_bytes()
    archive.write_bytes(data.replace(struct.pack("<I", 5_000_000), struct.pack("<I", 10)))
    assert refusal(archive) is ImportReason.UNREADABLE_ARCHIVE


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a": b"secret"}, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    assert refusal(archive) is ImportReason.ENCRYPTED_ARCHIVE


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"name_x": b""}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"name_x", b"name_\xff"))
    assert refusal(archive) is ImportReason.BAD_NAME


def test_names_in_a_tar_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tar_member("ok"))
        archive.addfile(tar_member("\xff.jpg"))
    assert refusal(tmp_path / "a.tar") is ImportReason.BAD_NAME


def test_utf8_names_without_the_flag_are_read(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"name_xx": b"1"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"name_xx", "name_é".encode()))
    unpack(archive, tmp_path / "into")
    assert files_below(tmp_path / "into") == {"name_é": b"1"}


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b", "a"], ["a/b", "./a//b"]])
def test_a_path_twice_is_refused(tmp_path: Path, names: list[str]) -> None:
    archive = tar_of(tmp_path / "a.tar", [tar_member(name) for name in names])
    assert refusal(archive) is ImportReason.DUPLICATE_FILE


@pytest.mark.parametrize("name", ["a" * 300, "/".join("a" * 40), "/".join(["a" * 200] * 6)])
def test_a_path_too_long_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(zip_of(tmp_path / "a.zip", {name: b""})) is ImportReason.BAD_NAME


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG" + b"\0" * 600, b"BZh91AY" + b"x" * 1000])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert refusal(tmp_path / "a") is ImportReason.UNSUPPORTED_ARCHIVE


@pytest.mark.parametrize("pack", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_cut_archive_is_refused(tmp_path: Path, pack: str, part: float) -> None:
    data = os.urandom(200_000)
    archive = tmp_path / "a"
    if pack == "zip":
        zip_of(archive, {"a": data})
    else:
        tar_of(archive, [tar_member("a", len(data))], data, "w:gz" if pack == "tar.gz" else "w")
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * part)])
    assert refusal(archive) is ImportReason.UNREADABLE_ARCHIVE


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_a_damaged_file_is_refused_however_it_is_compressed(tmp_path: Path, compression: int) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a": os.urandom(200_000)}, compression)
    data = bytearray(archive.read_bytes())
    data[1_000:2_000] = b"\xff" * 1_000
    archive.write_bytes(data)
    assert refusal(archive) is ImportReason.UNREADABLE_ARCHIVE


# The last of a file system, more than one has, and more than a number of the operating system's holds.
@pytest.mark.parametrize("offset", [2**62, 2**63 - 1, 2**64 - 1])
def test_a_zip_that_puts_a_file_where_none_can_be_is_refused(tmp_path: Path, offset: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"a")
        archive.infolist()[0].header_offset = offset
    assert refusal(tmp_path / "a.zip") is ImportReason.UNREADABLE_ARCHIVE


def test_a_tar_whose_sparse_map_is_no_numbers_is_refused(tmp_path: Path) -> None:
    member = tar_member("a")
    member.pax_headers = {"GNU.sparse.map": "one,two"}
    assert refusal(tar_of(tmp_path / "a.tar", [tar_member("ok"), member])) is ImportReason.UNREADABLE_ARCHIVE


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_a_full_disk_is_not_taken_for_a_damaged_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    archive = tmp_path / "a"
    if pack == "zip":
        zip_of(archive, {"a": b"a"})
    else:
        tar_of(archive, [tar_member("a", 1)], b"a")

    def on_full_disk(fd: int, mode: str) -> IO[Any]:
        os.close(fd)
        return Path("/dev/full").open(mode)

    monkeypatch.setattr(os, "fdopen", on_full_disk)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path / "into")


@pytest.mark.parametrize("place", [0, 1])
def test_a_tar_header_that_claims_to_be_huge_is_refused_unread(tmp_path: Path, place: int) -> None:
    header = tar_member("pax", 2**30, tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    first = tar_member("ok").tobuf() * place
    with gzip.open(tmp_path / "a", "wb", compresslevel=1) as file:
        file.write(first + header + b"\0" * 50_000_000)
    assert refusal(tmp_path / "a") is ImportReason.UNREADABLE_ARCHIVE


def test_the_folder_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "precious").touch()
    with pytest.raises(FileExistsError):
        unpack(zip_of(tmp_path / "a.zip", FILES), tmp_path / "into")
    assert (tmp_path / "into" / "precious").exists()


def test_paths_are_split_safely() -> None:
    assert safe_parts("a\\b/./c.jpg") == ["a", "b", "c.jpg"]
    assert safe_parts("a..b/..c") == ["a..b", "..c"]
    assert safe_parts("a\0b") is None
