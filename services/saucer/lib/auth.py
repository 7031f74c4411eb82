"""Who calls, and whether they may: Ed25519 JWTs (RFC 7519, RFC 8037), minted with a key that only the
administrator has.

Services hold the public keys (a JWK set) and a list of revoked token ids, both files that are read again when they
change. A verified token is kept until it expires, since a signature costs 0.1 ms; revocation is checked at each call.
"""

import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import OKPAlgorithm

from saucer.lib.errors import InvalidArgumentError, NotFoundError, UnauthenticatedError, UnavailableError
from saucer.lib.v1 import access_pb2

ALGORITHM = "EdDSA"
AUDIENCE = "saucer"
# Verified tokens kept; above it all are forgotten and verified anew.
CACHE_SIZE = 10_000
# A revoked token is refused at most this long after the list was written.
REVOCATION_CHECK_S = 1.0
MAX_TOKEN_BYTES = 4096


class Role(StrEnum):
    """What a token may do. Viewer, editor and owner belong to an account; the others to the platform."""

    VIEWER = "viewer"
    EDITOR = "editor"
    OWNER = "owner"
    PAYMENT = "payment"
    ADMINISTRATOR = "administrator"
    SERVICE = "service"
    WORKER = "worker"


ACCOUNT_ROLES = frozenset({Role.VIEWER, Role.EDITOR, Role.OWNER})

# Which roles may make a call of which access.
ALLOWED: Mapping[int, frozenset[Role]] = {
    access_pb2.ACCESS_VIEWER: frozenset({Role.VIEWER, Role.EDITOR, Role.OWNER, Role.ADMINISTRATOR, Role.SERVICE}),
    access_pb2.ACCESS_EDITOR: frozenset({Role.EDITOR, Role.OWNER, Role.ADMINISTRATOR}),
    access_pb2.ACCESS_OWNER: frozenset({Role.OWNER, Role.ADMINISTRATOR}),
    access_pb2.ACCESS_PAYMENT: frozenset({Role.PAYMENT, Role.ADMINISTRATOR}),
    access_pb2.ACCESS_ADMINISTRATOR: frozenset({Role.ADMINISTRATOR}),
    access_pb2.ACCESS_SERVICE: frozenset({Role.SERVICE}),
    access_pb2.ACCESS_WORKER: frozenset({Role.WORKER}),
}


@dataclass(frozen=True)
class Principal:
    """The bearer of a verified token."""

    subject: str
    role: Role
    # Of an account's role; else None.
    account_id: str | None
    token_id: str
    expires_at_s: float

    def may_see(self, account_id: str) -> bool:
        """Whether things of this account exist for the bearer."""
        return self.account_id == account_id if self.role in ACCOUNT_ROLES else True

    def own(self, kind: str, identifier: str, account_id: str) -> None:
        """Raises NotFoundError, as if the thing did not exist, if it is another account's."""
        if not self.may_see(account_id):
            raise NotFoundError(kind, identifier)

    def account(self, requested: str) -> str:
        """The account that a call concerns: the one it names, or the token's own.

        Raises:
            NotFoundError: it names another account than the token's.
            InvalidArgumentError: ACCOUNT_REQUIRED: the token has none, and the call names none.
        """
        account_id = requested or self.account_id
        if account_id is None:
            raise InvalidArgumentError("ACCOUNT_REQUIRED", "The token belongs to no account; name one.")
        if not self.may_see(account_id):
            raise NotFoundError("account", requested)
        return account_id


log = structlog.get_logger()
_current: ContextVar[Principal] = ContextVar("principal")


def current() -> Principal:
    """The caller of the present call. Set by the server before any handler runs."""
    return _current.get()


def set_current(principal: Principal) -> None:
    """For the server, and for tests that call use cases directly."""
    _current.set(principal)


class Verifier:
    """Checks tokens against the public keys and the revoked ids."""

    def __init__(self, keys_file: Path, revoked_file: Path | None = None) -> None:
        self._keys_file = keys_file
        self._revoked_file = revoked_file
        self._keys: dict[str, Any] = {}
        self._revoked: frozenset[str] = frozenset()
        self._read_at_s = float("-inf")
        self._stamps: tuple[float, float] = (0.0, 0.0)
        self._cache: dict[str, Principal] = {}

    def verify(self, token: str, now_s: float) -> Principal:
        """The bearer of a token. `now_s` is seconds since the epoch.

        Raises:
            UnauthenticatedError: malformed, of an unknown key, expired or revoked.
            UnavailableError: KEYS_UNREADABLE: one of the files cannot be read.
        """
        self._refresh(now_s)
        principal = self._cache.get(token)
        if principal is None:
            principal = self._decode(token)
            if len(self._cache) >= CACHE_SIZE:
                self._cache.clear()
            self._cache[token] = principal
        if principal.expires_at_s <= now_s:
            self._cache.pop(token, None)
            raise UnauthenticatedError("TOKEN_EXPIRED", "The token has expired; ask an administrator for a new one.")
        if principal.token_id in self._revoked:
            raise UnauthenticatedError("TOKEN_REVOKED", "The token was revoked.")
        return principal

    def _refresh(self, now_s: float) -> None:
        if now_s - self._read_at_s < REVOCATION_CHECK_S:
            return
        try:
            stamps = (_mtime(self._keys_file), _mtime(self._revoked_file))
            if stamps != self._stamps:
                self._read()
        except (OSError, ValueError, LookupError, TypeError, jwt.PyJWTError) as error:
            log.error("keys_unreadable", error=repr(error))
            raise UnavailableError("KEYS_UNREADABLE", "Tokens cannot be checked now; call again.") from error
        # Only now: what could not be read is read again at the next call.
        self._stamps, self._read_at_s = stamps, now_s

    def _read(self) -> None:
        starting = not self._keys
        keys = json.loads(self._keys_file.read_text())["keys"]
        self._keys = {key["kid"]: OKPAlgorithm.from_jwk(key) for key in keys}
        self._cache.clear()
        if self._revoked_file is not None and self._revoked_file.exists():
            former, self._revoked = self._revoked, frozenset(self._revoked_file.read_text().split())
            for token_id in sorted(self._revoked ^ former) if not starting else ():
                log.info("token_revoked" if token_id in self._revoked else "token_restored", token_id=token_id)

    def _decode(self, token: str) -> Principal:
        if len(token) > MAX_TOKEN_BYTES:
            raise UnauthenticatedError("TOKEN_INVALID", "The token is too long to be one of ours.")
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                options={"require": ["exp", "sub", "jti"], "verify_exp": False, "verify_iat": False},
            )
            role = Role(claims["role"])
            account_id = claims.get("account")
            if (role in ACCOUNT_ROLES) != (account_id is not None):
                raise ValueError("An account's role needs an account, and no other has one.")
            return Principal(claims["sub"], role, account_id, claims["jti"], float(claims["exp"]))
        except (jwt.PyJWTError, KeyError, ValueError) as error:
            raise UnauthenticatedError("TOKEN_INVALID", f"The token is not valid: {error}") from error


def _mtime(file: Path | None) -> float:
    return file.stat().st_mtime if file is not None and file.exists() else 0.0


def generate_keys(private_file: Path, public_file: Path, key_id: str) -> None:
    """Writes a new key pair: the private key as PEM, readable by its owner alone, the public one as a JWK set."""
    key = Ed25519PrivateKey.generate()
    private_file.touch(mode=0o600)
    private_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    jwk = json.loads(OKPAlgorithm.to_jwk(key.public_key())) | {"kid": key_id, "alg": ALGORITHM, "use": "sig"}
    public_file.write_text(json.dumps({"keys": [jwk]}, indent=2))


def mint(
    private_key: bytes,
    key_id: str,
    *,
    token_id: str,
    subject: str,
    role: Role,
    account_id: str | None,
    now: datetime,
    lifetime: timedelta,
) -> str:
    """A signed token. Raises ValueError unless exactly the roles of an account have one."""
    if (role in ACCOUNT_ROLES) != (account_id is not None):
        raise ValueError("The roles viewer, editor and owner need an account; the others have none.")
    claims: dict[str, object] = {
        "aud": AUDIENCE,
        "sub": subject,
        "jti": token_id,
        "iat": int(now.timestamp()),
        "exp": int((now + lifetime).timestamp()),
        "role": role.value,
    }
    if account_id is not None:
        claims["account"] = account_id
    return jwt.encode(claims, private_key, algorithm=ALGORITHM, headers={"kid": key_id})
