"""Tokens: who bears one, and every reason for which one is not believed."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from structlog.testing import capture_logs

from saucer.lib import auth
from saucer.lib.auth import Principal, Role, Verifier, generate_keys, mint
from saucer.lib.errors import InvalidArgumentError, NotFoundError, UnauthenticatedError, UnavailableError
from saucer.lib.ids import new_id

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_S = NOW.timestamp()
HOUR = timedelta(hours=1)
ACCOUNT = "01a20ae6-0bc6-76a0-b90f-31562be3ecdc"


class Keys:
    def __init__(self, folder: Path, key_id: str = "k1") -> None:
        self.private, self.public, self.revoked = folder / "private.pem", folder / "public.json", folder / "revoked.txt"
        self.key_id = key_id
        generate_keys(self.private, self.public, key_id)

    def verifier(self) -> Verifier:
        return Verifier(self.public, self.revoked)

    def mint(self, role: Role = Role.OWNER, account_id: str | None = ACCOUNT, token_id: str = "t1") -> str:
        return mint(
            self.private.read_bytes(),
            self.key_id,
            token_id=token_id,
            subject="somebody",
            role=role,
            account_id=account_id,
            now=NOW,
            lifetime=HOUR,
        )

    def sign(self, **claims: object) -> str:
        """With claims that mint() would refuse; None leaves one out."""
        usual = {"aud": auth.AUDIENCE, "sub": "s", "jti": "t", "exp": int(NOW_S) + 60, "role": "service"}
        kept = {name: value for name, value in (usual | claims).items() if value is not None}
        return jwt.encode(kept, self.private.read_bytes(), algorithm="EdDSA", headers={"kid": self.key_id})


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def refused(verifier: Verifier, token: str, now_s: float = NOW_S) -> str:
    with pytest.raises(UnauthenticatedError) as refusal:
        verifier.verify(token, now_s)
    return refusal.value.reason


def test_a_token_says_who_bears_it(keys: Keys) -> None:
    principal = keys.verifier().verify(keys.mint(), NOW_S)
    assert principal == Principal("somebody", Role.OWNER, ACCOUNT, "t1", NOW_S + 3600)


def test_a_token_is_good_until_it_expires_though_it_was_verified_before(keys: Keys) -> None:
    verifier, token = keys.verifier(), keys.mint()
    verifier.verify(token, NOW_S + 3599)
    assert refused(verifier, token, NOW_S + 3600) == "TOKEN_EXPIRED"
    assert refused(keys.verifier(), token, NOW_S + 3600) == "TOKEN_EXPIRED"


def test_a_revoked_token_is_refused_within_a_second_though_it_was_verified_before(keys: Keys) -> None:
    verifier, token, other = keys.verifier(), keys.mint(), keys.mint(token_id="t2")
    verifier.verify(token, NOW_S)
    keys.revoked.write_text("t0\nt1\n")
    verifier.verify(token, NOW_S + auth.REVOCATION_CHECK_S / 2)
    with capture_logs() as lines:
        assert refused(verifier, token, NOW_S + auth.REVOCATION_CHECK_S) == "TOKEN_REVOKED"
    assert [(line["event"], line["token_id"]) for line in lines] == [("token_revoked", "t0"), ("token_revoked", "t1")]
    verifier.verify(other, NOW_S + auth.REVOCATION_CHECK_S)


def test_a_token_of_another_key_is_refused_whatever_it_calls_itself(keys: Keys, tmp_path: Path) -> None:
    for key_id in ("k1", "k2"):
        folder = tmp_path / key_id
        folder.mkdir()
        assert refused(keys.verifier(), Keys(folder, key_id).mint()) == "TOKEN_INVALID"


def test_a_new_key_is_believed_once_its_file_is_written(keys: Keys, tmp_path: Path) -> None:
    verifier = keys.verifier()
    verifier.verify(keys.mint(), NOW_S)
    folder = tmp_path / "next"
    folder.mkdir()
    following = Keys(folder, "k2")
    both = [*json.loads(keys.public.read_text())["keys"], *json.loads(following.public.read_text())["keys"]]
    keys.public.write_text(json.dumps({"keys": both}))
    later_s = NOW_S + auth.REVOCATION_CHECK_S
    for token in (keys.mint(), following.mint()):
        assert verifier.verify(token, later_s).subject == "somebody"


@pytest.mark.parametrize("half", ['{"keys": [', '{"keys": [{"kid": "k1", "kty": "OKP"}]}', "[]"])
def test_nobody_is_believed_while_a_file_cannot_be_read_and_then_it_is_read_again_though_its_time_is_the_same(
    keys: Keys, half: str
) -> None:
    verifier, token, whole = keys.verifier(), keys.mint(), keys.public.read_text()
    verifier.verify(token, NOW_S)
    keys.revoked.write_text("t1\n")
    keys.public.write_text(half)
    stamp = keys.public.stat()
    later_s = NOW_S + auth.REVOCATION_CHECK_S
    for _ in range(2):
        with pytest.raises(UnavailableError) as failure:
            verifier.verify(token, later_s)
        assert failure.value.reason == "KEYS_UNREADABLE"
    keys.public.write_text(whole)
    os.utime(keys.public, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert refused(verifier, token, later_s) == "TOKEN_REVOKED"


@pytest.mark.parametrize(
    "claims",
    [
        {"role": "viewer"},
        {"role": "service", "account": ACCOUNT},
        {"role": "king"},
        {"role": None},
        {"jti": None},
        {"sub": None},
        {"exp": None},
        {"aud": "another"},
    ],
    ids=str,
)
def test_a_token_whose_claims_do_not_fit_together_is_refused(keys: Keys, claims: dict[str, object]) -> None:
    keys.verifier().verify(keys.sign(), NOW_S)
    assert refused(keys.verifier(), keys.sign(**claims)) == "TOKEN_INVALID"


def test_an_unsigned_token_is_refused(keys: Keys) -> None:
    claims = {"aud": auth.AUDIENCE, "sub": "s", "jti": "t", "exp": NOW_S + 60, "role": "administrator"}
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": "k1"})
    assert refused(keys.verifier(), unsigned) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "token", ["", "x", "a.b.c", "x" * (auth.MAX_TOKEN_BYTES + 1)], ids=["empty", "x", "abc", "long"]
)
def test_what_is_no_token_is_refused(keys: Keys, token: str) -> None:
    assert refused(keys.verifier(), token) == "TOKEN_INVALID"


def test_only_an_accounts_roles_have_an_account(keys: Keys) -> None:
    for role in Role:
        with pytest.raises(ValueError, match="need an account"):
            keys.mint(role, None if role in auth.ACCOUNT_ROLES else ACCOUNT)


def test_verified_tokens_are_kept_up_to_a_bound(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "CACHE_SIZE", 2)
    verifier = keys.verifier()
    for number in range(5):
        verifier.verify(keys.mint(token_id=f"t{number}"), NOW_S)
        assert len(verifier._cache) <= 2


def test_another_accounts_things_do_not_exist_for_an_accounts_role_and_do_for_the_platforms() -> None:
    owner = Principal("s", Role.OWNER, ACCOUNT, "t", NOW_S)
    service = Principal("s", Role.SERVICE, None, "t", NOW_S)
    other = new_id()
    owner.own("task", "1", ACCOUNT)
    service.own("task", "1", other)
    with pytest.raises(NotFoundError):
        owner.own("task", "1", other)
    assert owner.account("") == owner.account(ACCOUNT) == ACCOUNT
    assert service.account(other) == other
    with pytest.raises(NotFoundError):
        owner.account(other)
    with pytest.raises(InvalidArgumentError, match="name one"):
        service.account("")


def test_the_private_key_is_its_owners_alone(keys: Keys) -> None:
    assert keys.private.stat().st_mode & 0o077 == 0
    assert "d" not in json.loads(keys.public.read_text())["keys"][0]
