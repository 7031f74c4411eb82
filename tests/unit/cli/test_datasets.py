"""Folders on the command line: packed, uploaded, imported."""

import io
import tarfile
from pathlib import Path

from saucer.cli import datasets
from tests.support.cli import Cli
from tests.unit.cli.script import RUN, VERSION, Script


def folder(tmp_path: Path) -> Path:
    source = tmp_path / "cups"
    (source / "images").mkdir(parents=True)
    (source / "images" / "a.jpg").write_bytes(b"a" * 2_500_000)
    (source / "labels.json").write_text("{}")
    (source / ".hidden").write_text("x")
    return source


def test_a_folder_is_packed_uploaded_and_imported(cli: Cli, script: Script, tmp_path: Path) -> None:
    text = cli("dataset", "import", str(folder(tmp_path)))
    with tarfile.open(fileobj=io.BytesIO(bytes(script.uploaded))) as tar:
        assert tar.getnames() == ["images/a.jpg", "labels.json"]
    assert script.requests[-1].display_name == "cups"
    assert script.requests[-1].upload_id == RUN
    assert "BOX_OF_NO_AREA" in text
    assert "and 1 more" in text
    assert VERSION in text


def test_an_interrupted_upload_goes_on_where_it_was(cli: Cli, script: Script, tmp_path: Path) -> None:
    source = folder(tmp_path)
    script.fail_writes_at = 2 * datasets.CHUNK_BYTES
    said = cli.fails("dataset", "import", str(source))
    assert f"--upload-id {RUN}" in said
    assert "The disk is full." in said
    script.fail_writes_at = -1
    # Packed again later, the folder gives the same bytes.
    (source / "labels.json").touch()
    imported = cli.json("dataset", "import", str(source), "--upload-id", RUN)
    assert imported["datasetVersion"]["datasetVersionId"] == VERSION
    assert len(script.uploaded) == script.upload_size


def test_another_archive_cannot_go_on_with_an_upload(cli: Cli, script: Script, tmp_path: Path) -> None:
    script.upload_size = 7
    assert "another one?" in cli.fails("dataset", "import", str(folder(tmp_path)), "--upload-id", RUN)


def test_an_upload_does_not_go_on_with_a_file_that_was_changed_meanwhile(
    cli: Cli, script: Script, tmp_path: Path
) -> None:
    source = folder(tmp_path)
    script.fail_writes_at = 2 * datasets.CHUNK_BYTES
    cli.fails("dataset", "import", str(source))
    script.fail_writes_at = -1
    image = source / "images" / "a.jpg"
    # In the second chunk that is there, and as long as it was.
    image.write_bytes(b"a" * 2_000_000 + b"b" + b"a" * 499_999)
    said = cli.fails("dataset", "import", str(source), "--upload-id", RUN)
    assert "has changed" in said
    assert "begin a new one" in said
    assert len(script.uploaded) == 2 * datasets.CHUNK_BYTES


def test_an_empty_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no files" in cli.fails("dataset", "import", str(tmp_path / "empty"))
