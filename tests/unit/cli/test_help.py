"""The help: every topic, every verb."""

import subprocess
import sys

import click

from saucer.cli.main import TOPICS, main
from tests.support.cli import Cli


def test_a_topic_has_its_verbs_whatever_was_imported_before() -> None:
    """A process of its own: one that imported another topic may have added verbs to this."""
    program = (
        "from saucer.cli.main import main, TOPICS\n"
        "import sys\n"
        "print(*sorted(getattr(main.get_command(None, sys.argv[1]), 'commands', {})))"
    )

    def verbs(before: str) -> str:
        command = [sys.executable, "-c", before + program, "deployment"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    alone = verbs("")
    assert "versions" in alone
    assert alone == verbs("import saucer.cli.versions, saucer.cli.testing\n")


def test_the_help_names_every_verb_of_a_topic_and_no_other() -> None:
    context = click.Context(main)
    said, registered = {}, {}
    for topic, (_, text) in TOPICS.items():
        command = main.get_command(context, topic)
        if isinstance(command, click.Group):
            verbs = text.partition(": ")[2].removesuffix(".")
            said[topic] = sorted(verbs.split(", "))
            registered[topic] = sorted(name for name, verb in command.commands.items() if not verb.hidden)
    assert said == registered


def test_every_verb_has_help_and_starts_without_drawing(cli: Cli) -> None:
    for topic in TOPICS:
        assert cli.result(topic, "--help").exit_code == 0, topic
