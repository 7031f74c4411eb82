"""What all tests of commands share."""

import sys
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _logs_beside() -> Iterator[None]:
    """The services' logs go past the stdout that a command's run replaces for the whole process."""
    former = structlog.get_config()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.configure(**former)
