"""Settings: an unknown one, a missing one and a bad value each end the start with a sentence."""

import os
from pathlib import Path

import pytest

from saucer.lib import config
from saucer.lib.config import PREFIX, CallingSettings, load

GOOD = {
    "LISTEN": "127.0.0.1:1",
    "NATS_URL": "nats://x",
    "PUBLIC_KEYS_FILE": "/keys.json",
    "DATABASE_URL": "postgresql://x",
    "TOKEN_FILE": "/token",
}


def loaded(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> CallingSettings:
    """With the good settings, changed; None leaves one out."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name, value in (GOOD | changes).items():
        if value is not None:
            monkeypatch.setenv(PREFIX + name, value)
    return load(CallingSettings)


def sentence(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> str:
    with pytest.raises(SystemExit) as end:
        loaded(monkeypatch, **changes)
    assert isinstance(end.value.code, str)
    return end.value.code


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, LOG_FORMAT="text")
    assert settings.token_file == Path("/token")
    assert settings.log_format == "text"


def test_an_unknown_setting_ends_the_start_and_a_likely_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        sentence(monkeypatch, DATABSE_URL="x") == "The setting SAUCER_DATABSE_URL is unknown. "
        "Did you mean SAUCER_DATABASE_URL?"
    )
    assert "There are: SAUCER_CALLS_KEEP_DAYS, SAUCER_DATABASE_URL, " in sentence(monkeypatch, QQQ="x")


def test_a_missing_setting_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sentence(monkeypatch, TOKEN_FILE=None).startswith("The setting SAUCER_TOKEN_FILE cannot be used:")


def test_a_bad_value_ends_the_start_and_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = sentence(monkeypatch, LOG_LEVEL="LOUD", LISTEN=None, NAT_URL="x").splitlines()
    assert len(lines) == 3
    assert any("SAUCER_LOG_LEVEL cannot be used" in line and "'DEBUG'" in line for line in lines)


def test_a_secret_may_come_as_a_file_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "SECRETS_FOLDER", tmp_path)
    (tmp_path / "saucer_database_url").write_text("postgresql://file\n")
    (tmp_path / "saucer_nats_url").write_text("nats://file")
    settings = loaded(monkeypatch, DATABASE_URL=None)
    assert settings.database_url == "postgresql://file"
    assert settings.nats_url == "nats://x"
