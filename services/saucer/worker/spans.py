"""What an attempt does, as spans below its own: one for each stage, from its beginning to that of the next."""

from datetime import UTC, datetime

from saucer.lib import tracing


class Stages:
    """The stage that an attempt is in."""

    def __init__(self) -> None:
        self._present: tuple[str, datetime] | None = None

    def enter(self, name: str) -> None:
        """A stage begins, and the one before ends."""
        self.end()
        self._present = (name, datetime.now(UTC))

    def end(self) -> None:
        """So does the attempt."""
        parent = tracing.current()
        if self._present is not None and parent is not None:
            name, began = self._present
            tracing.record(name, parent, began, datetime.now(UTC), {})
        self._present = None
