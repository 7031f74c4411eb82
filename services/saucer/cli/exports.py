"""Files that a service streams in pieces: their names say their form, and a half file never bears the name."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import click

from saucer.cli.app import App
from saucer.cli.connection import Stream, streaming
from saucer.cli.errors import CliError


class _Piece(Protocol):
    @property
    def data(self) -> bytes: ...


class ExportFile(click.Path):
    """A file whose name ends in one of these suffixes."""

    def __init__(self, suffixes: Collection[str]) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses other names."""
        if Path(value).suffix.lower() not in self._suffixes:
            self.fail(f"{value!r}: the name must end in {' or '.join(self._suffixes)}.", param, ctx)
        return super().convert(value, param, ctx)


def write_pieces(app: App, file: Path, call: Stream[_Piece]) -> None:
    """Raises CliError if the file cannot be written."""
    aside = file.with_name(f"{file.name}.part")
    try:
        with streaming(call) as pieces, aside.open("wb") as written:
            for piece in pieces:
                written.write(piece.data)
        aside.replace(file)
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error}.") from error
    app.output.remark(f"Written: {file}")
