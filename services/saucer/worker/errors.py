"""How a job can end without a result."""


class UserError(Exception):
    """The data or the settings cannot be trained with; the message says what to change."""


class HaltedError(Exception):
    """A stop order asked to leave the job as it is."""


class CheckpointError(Exception):
    """The checkpoint to resume from is damaged or is not one of ours."""
