"""The command line against a script."""

from tests.unit.cli.script import cli, script

__all__ = ["cli", "script"]
