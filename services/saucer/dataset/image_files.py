"""Opens images by the names that label files give them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from saucer.dataset.layout import LabelFile, NotInFolderError, find_image, open_below
from saucer.dataset.pairing import files_below, spelled_alike
from saucer.dataset.report import ItemReason


class ImageFiles:
    """Of one folder. A name that is not there is looked up once more, spelled alike (pairing.py)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, label_file: LabelFile, parts: Sequence[str]) -> tuple[BinaryIO, tuple[str, ...]]:
        """As layout.find_image() has it.

        Raises:
            NotInFolderError: likewise.
            ImportRefusedError: too_many_files, if all had to be looked at.
        """
        try:
            return find_image(self._folder, label_file, parts)
        except NotInFolderError as error:
            path = self._on_disk(label_file, parts) if error.reason is ItemReason.MISSING_IMAGE else None
            if path is None:
                raise
        return open_below(self._folder, path), path

    def _on_disk(self, label_file: LabelFile, parts: Sequence[str]) -> tuple[str, ...] | None:
        name = "/".join(parts)
        if name.isascii():
            return None
        places = (spelled_alike(str(image_folder / name)) for image_folder in label_file.image_folders)
        return next((tuple(self._paths[place].split("/")) for place in places if place in self._paths), None)

    @cached_property
    def _paths(self) -> dict[str, str]:
        """By how they are spelled alike; of ASCII there is one spelling only."""
        return {spelled_alike(path): path for path in files_below(self._folder) if not path.isascii()}
