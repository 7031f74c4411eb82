"""Fixtures for all tests, and how two processes of pytest share them out."""

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# Times on a busy machine say nothing of an example.
settings.register_profile("saucer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("saucer")

pytest_plugins = [
    "tests.support.servers",
    "tests.support.services",
    "tests.support.ledger",
    "tests.support.stack",
    "tests.support.s3",
    "tests.support.crew",
]


class _ByFixtures(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """A file's tests share fixtures, and all that walk through a whole Saucer share that one: none is made twice."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "saucer" if file.startswith(("tests/e2e/", "tests/faults/")) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Most tests wait more than they compute, so that two processes take little more than half the time of one."""
    return _ByFixtures(config, log)
