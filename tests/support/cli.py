"""The command line as a user types it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from saucer.cli.main import main


@dataclass(frozen=True)
class Cli:
    """Runs `saucer …` with a profile of its own. Blocks: call it in a thread while an event loop serves."""

    profile: Path

    @staticmethod
    def write(file: Path, services: dict[str, str], **more: str) -> "Cli":
        file.write_text(json.dumps({"services": services, **more}))
        return Cli(file)

    def result(self, *arguments: str, token: str | None = None, stdin: str | None = None) -> Result:
        environment = {"SAUCER_PROFILE": str(self.profile), "SAUCER_TOKEN": token or "", "SAUCER_ACCOUNT": ""}
        return CliRunner().invoke(main, arguments, env=environment, input=stdin)

    def __call__(self, *arguments: str, token: str | None = None) -> str:
        """What it prints on stdout; it must end with 0."""
        result = self.result(*arguments, token=token)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.stdout

    def json(self, *arguments: str, token: str | None = None) -> Any:
        return json.loads(self(*arguments, "--json", token=token))

    def lines(self, *arguments: str, token: str | None = None) -> list[Any]:
        return [json.loads(line) for line in self(*arguments, "--json", token=token).splitlines()]

    def fails(self, *arguments: str, code: int = 1, token: str | None = None) -> str:
        """What it prints on stderr; it must end with the code, and by no exception of its own."""
        result = self.result(*arguments, token=token)
        assert result.exit_code == code, result.output + repr(result.exception)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        return result.stderr
