"""What the form offers for each parameter of a training, and the range of a value of the user's own."""

from dataclasses import dataclass

from saucer.task.domain import Form, Refused


@dataclass(frozen=True)
class Parameter:
    """One of the form's fields: built-in values, or a custom one from `minimum` to `maximum`."""

    name: str
    description: str
    unit: str
    values: tuple[float, ...]
    minimum: float
    maximum: float
    whole: bool = True
    # Custom values are multiples of it; 0: any.
    step: int = 0

    def check(self, value: float) -> None:
        """Raises Refused for a value that cannot be trained with."""
        if not self.minimum <= value <= self.maximum or (self.step and value % self.step):
            steps = f", a multiple of {self.step}" if self.step else ""
            raise Refused(
                "PARAMETER_OUT_OF_RANGE",
                f"{self.name}: {value:g} is not in {self.minimum:g} to {self.maximum:g}{steps}.",
            )


# The message's rules (task.proto) and the worker's own ranges (worker/job.py) are the same: a test compares them.
PARAMETERS = (
    Parameter("epochs", "Passes over the training split.", "epochs", (10, 20, 50, 100, 300), 1, 10_000),
    Parameter("lr", "Learning rate after the warmup.", "", (0.0005, 0.001, 0.002, 0.004), 1e-6, 1.0, whole=False),
    Parameter("batch_size", "Images of one iteration.", "images", (4, 8, 16, 32, 64), 1, 512),
    Parameter("warmup", "Iterations in which the learning rate rises.", "iterations", (0, 20, 100, 500), 0, 100_000),
    Parameter(
        "input_size",
        "Side of the square that each image is fitted into.",
        "px",
        (128, 192, 256, 320, 416, 512, 640),
        64,
        1280,
        step=32,
    ),
)


def check(form: Form) -> None:
    """Raises Refused for the first value that the user chose out of its range."""
    for parameter in PARAMETERS:
        value = getattr(form, parameter.name)
        if value is not None:
            parameter.check(value)
