"""What this package raises."""


class UnreadableImage(ValueError):  # noqa: N818 - says what the bytes are; callers read it as a finding
    """These bytes are not an image that is accepted; `reason` is a sentence for the sender."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ModelFolderError(ValueError):
    """The model folder lacks a file, or model.json or the graph is not what this version reads."""


class RuntimeUnusable(Exception):  # noqa: N818 - says what the machine is; callers read it as a finding
    """This machine lacks the runtime, or what the runtime needs of the processor."""


class DetectionsError(ValueError):
    """Stored detections are cut, of another format, inconsistent or over the limits."""
