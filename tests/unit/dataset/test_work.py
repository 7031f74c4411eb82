"""The service believes a child process only what it can check."""

import hashlib
from pathlib import Path

import pytest

from saucer.dataset.domain import ImportFailedError
from saucer.dataset.import_process import AcceptedImage
from saucer.dataset.storage import Room
from saucer.dataset.work import read_accepted
from saucer.lib.confined import ChildDiedError


def accepted(path: str, data: bytes = b"picture") -> AcceptedImage:
    return AcceptedImage(hashlib.sha256(data).hexdigest(), path)


def test_an_image_is_read_again_below_the_source_and_must_have_its_hash(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a/1.png").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(b"picture")
    (source / "link").symlink_to(tmp_path / "secret")
    room = Room()
    room.grow(None)
    assert read_accepted(source, accepted("a/1.png"), room) == b"picture"
    for image in (accepted("a/1.png", b"another"), accepted("a/2.png"), accepted("link")):
        with pytest.raises(ImportFailedError) as failed:
            read_accepted(source, image, room)
        assert failed.value.reason == "SOURCE_CHANGED"
    for path in ("../secret", "/etc/passwd", ""):
        with pytest.raises(ChildDiedError):
            read_accepted(source, accepted(path), room)
