"""Who owns a run: the secret of an attempt, and when a silent owner may be declared lost.

A token is derived from the request id that asked for the lease, which only the worker knows, and a random salt. What is
stored (salt, and hashes of both) does not give it away, yet a repeated request gets the same token again.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

SALT_BYTES = 32


@dataclass(frozen=True)
class Lease:
    """The present attempt's, or the last one's."""

    worker_id: str
    token_sha256: str
    request_sha256: str
    salt: bytes
    # None: nobody holds the run.
    expires_at: datetime | None
    # Of the last accepted heartbeat.
    sequence: int = 0
    # Finishing must be over by then; None while training goes on.
    finish_by: datetime | None = None


def new_salt() -> bytes:
    """Of one attempt."""
    return secrets.token_bytes(SALT_BYTES)


def token_of(request_id: str, salt: bytes) -> str:
    """The secret of the attempt that this request leased."""
    digest = hmac.new(salt, request_id.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def hash_of(secret: str) -> str:
    """What is stored of a token or a request id."""
    return hashlib.sha256(secret.encode()).hexdigest()


def holds(lease: Lease | None, token: str) -> bool:
    """Whether the token is this lease's."""
    return lease is not None and hmac.compare_digest(lease.token_sha256, hash_of(token))


def is_over(lease: Lease | None, now: datetime) -> bool:
    """Whether nobody holds the run by it any more, also if that was not noted yet."""
    return lease is None or lease.expires_at is None or lease.expires_at <= now


class Reachable:
    """For how long workers could have reached this process without a break. Times are monotonic seconds.

    A lease that ran out while nobody could prolong it says nothing about its worker. So leases end only after this
    process has been up, awake and with its database for a lease length.
    """

    def __init__(self, longest_pause_s: float) -> None:
        """Rounds further apart than `longest_pause_s` are a break: the process was frozen, or PostgreSQL slow."""
        self._longest_pause_s = longest_pause_s
        self._since_s: float | None = None
        self._last_s = 0.0

    def seen(self, now_s: float) -> float:
        """Notes that the database answers; the seconds for which it has."""
        if self._since_s is None or now_s - self._last_s > self._longest_pause_s:
            self._since_s = now_s
        self._last_s = now_s
        return now_s - self._since_s

    def broken(self) -> None:
        """Notes that it does not."""
        self._since_s = None
