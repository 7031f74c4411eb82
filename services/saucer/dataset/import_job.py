"""What an import's child process is told. Apart from it, so that the service loads no image library."""

from dataclasses import dataclass

# Of the file of an image; above it: image_too_large. serving/decode.py has the same bound.
MAX_IMAGE_BYTES = 64 * 1024**2


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
