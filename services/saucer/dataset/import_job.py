"""What an import's child process is told. Apart from it, so that the service loads no image library."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ImportJob:
    """`source` is an archive or a folder; `unpacked`, `manifest` and `listing` do not exist yet."""

    source: str
    unpacked: str
    manifest: str
    # As listing.write_listing() writes it.
    listing: str
    seed: int
    # formats.SourceFormat
    source_format: str
    max_unpacked_bytes: int
    # RLIMIT_AS: memory beyond it is refused, and with it the import.
    memory_bytes: int
    # RLIMIT_FSIZE: of any one file that is written.
    file_bytes: int
    # Process id of the service; the child ends with it.
    parent: int

    def line(self) -> bytes:
        """As it is written to the child's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> "ImportJob":
        """Of such a line."""
        return cls(**json.loads(line))
