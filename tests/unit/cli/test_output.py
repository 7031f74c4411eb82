"""How figures are written, what options take, and where a connection comes from."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.cli.app import IDENTIFIER, MONEY, SECONDS, enum_choice, enum_number
from saucer.cli.connection import account_of_token, read_profile
from saucer.cli.errors import CliError
from saucer.cli.output import duration, enum_word, money
from saucer.lib.auth import Role, generate_keys, mint
from saucer.lib.config import ProcessSettings, load
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0.00 EUR"),
        (12_500_000, "12.50 EUR"),
        (1, "0.000001 EUR"),
        (1_234_567_891_200, "1,234,567.8912 EUR"),
        (-5_000, "-0.005 EUR"),
    ],
)
def test_money_has_at_least_two_decimals_and_is_never_rounded(micros: int, text: str) -> None:
    assert money(micros, "EUR") == text


@given(st.integers(-(10**15), 10**15))
def test_an_amount_that_was_printed_can_be_typed_again(micros: int) -> None:
    assert MONEY.convert(money(micros).replace(",", ""), None, None) == micros


@pytest.mark.parametrize("text", ["", "x", "1.0000001", "nan", "inf", "1e-7", "12,5"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no amount"):
        MONEY.convert(text, None, None)


def test_an_amount_is_exact() -> None:
    assert MONEY.convert("0.1", None, None) == int(Decimal("0.1") * 1_000_000)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_durations_are_typed_with_a_unit_or_in_seconds(text: str, seconds: float) -> None:
    assert SECONDS.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "an hour", "5w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no duration"):
        SECONDS.convert(text, None, None)


def test_durations_are_printed_in_hours_minutes_and_seconds() -> None:
    assert duration(3661.9) == "1:01:01"


def test_an_id_is_written_as_the_services_write_it() -> None:
    assert IDENTIFIER.convert("0190B6F1-7C3A-7B5E-9D2F-3A1C5E7F9B0D", None, None).islower()


def test_enums_are_words() -> None:
    states = task_pb2.TaskState.DESCRIPTOR
    assert enum_word(task_pb2.Task(state=task_pb2.TASK_STATE_SUCCEEDED), "state") == "succeeded"
    assert enum_word(task_pb2.Task(), "state") == ""
    assert "unspecified" not in enum_choice(states).choices
    assert all(enum_number(states, word) for word in enum_choice(states).choices)


def test_a_profile_may_say_little_and_its_paths_are_its_own(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"services": {"billing": "127.0.0.1:1"}, "private_key_file": "keys/private.pem"}))
    profile = read_profile(file)
    assert profile.services == {"billing": "127.0.0.1:1"}
    assert profile.private_key_file == tmp_path / "keys" / "private.pem"
    assert profile.token is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"services": 1}'])
def test_a_profile_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(CliError, match="cannot be read"):
        read_profile(file)


def test_a_missing_profile_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="saucer up"):
        read_profile(tmp_path / "profile.json")


def test_the_account_of_a_token_is_read_from_it(tmp_path: Path) -> None:
    generate_keys(tmp_path / "private.pem", tmp_path / "public.json", "k")
    account_id = new_id()

    def token(role: Role, account: str | None) -> str:
        return mint(
            (tmp_path / "private.pem").read_bytes(),
            "k",
            token_id=new_id(),
            subject="x",
            role=role,
            account_id=account,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )

    assert account_of_token(token(Role.VIEWER, account_id)) == account_id
    assert account_of_token(token(Role.ADMINISTRATOR, None)) is None


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "a.W10.c", "é.é.é"])
def test_what_is_no_token_has_no_account(token: str) -> None:
    assert account_of_token(token) is None


def test_the_command_lines_own_variables_do_not_stop_a_service_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAUCER_PROFILE", "SAUCER_TOKEN", "SAUCER_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    assert load(ProcessSettings).log_format == "json"
    monkeypatch.setenv("SAUCER_PROFIL", "x")
    with pytest.raises(SystemExit, match="SAUCER_PROFIL is unknown"):
        load(ProcessSettings)
