"""Files that come from a service, in pieces or as what is made of its answers: a half file never bears the name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from saucer.cli.app import App
from saucer.cli.connection import Stream, streaming
from saucer.cli.errors import CliError


class _Piece(Protocol):
    @property
    def data(self) -> bytes: ...


@contextmanager
def new_file(file: Path) -> Iterator[BinaryIO]:
    """A file beside it, which takes its name when the block ends well, and goes when it does not.

    Make it before the calls whose answers go into it: reading images for a file that cannot be written costs their
    owner all the same. Raises CliError if it cannot be written.
    """
    aside = file.with_name(f"{file.name}.part")
    try:
        with aside.open("wb") as written:
            yield written
        aside.replace(file)
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error}.") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_pieces(app: App, file: Path, call: Callable[[], Stream[_Piece]]) -> None:
    """Makes the call once the file can be written. Raises CliError if it cannot."""
    with new_file(file) as written, streaming(call()) as pieces:
        for piece in pieces:
            written.write(piece.data)
    app.output.remark(f"Written: {file}")
