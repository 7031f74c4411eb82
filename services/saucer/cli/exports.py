"""Files that a service streams in pieces: a half file never bears the name."""

from pathlib import Path
from typing import Protocol

from saucer.cli.app import App
from saucer.cli.connection import Stream, streaming
from saucer.cli.errors import CliError


class _Piece(Protocol):
    @property
    def data(self) -> bytes: ...


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
