"""Settings from the environment. An unknown one or a bad value stops the start with a sentence."""

import difflib
import os
import sys
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from saucer.lib.grpc_server import MAX_MESSAGE_BYTES, RECEIVING_BYTES
from saucer.lib.stream import KEEP_DAYS, StreamShape
from saucer.lib.tls import Identity

PREFIX = "SAUCER_"
# Settings as files, as Docker and Kubernetes hand secrets out: /run/secrets/saucer_database_url. The environment wins.
SECRETS_FOLDER = Path("/run/secrets")
# Of the command line's own, which starts services on one machine: they may stand in its environment.
COMMAND_LINE = frozenset({"SAUCER_PROFILE", "SAUCER_TOKEN", "SAUCER_ACCOUNT"})


class TlsSettings(BaseSettings):
    """All three or none; then every call, connection and gRPC port of the process has mutual TLS."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    # PEM: the authority whose certificates are believed, and the process's own certificate with its key.
    tls_ca_file: Path | None = None
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = [file is not None for file in (self.tls_ca_file, self.tls_certificate_file, self.tls_key_file)]
        if any(given) and not all(given):
            raise ValueError("TLS needs all of SAUCER_TLS_CA_FILE, SAUCER_TLS_CERTIFICATE_FILE and SAUCER_TLS_KEY_FILE")
        return self

    @property
    def identity(self) -> Identity | None:
        """None without TLS."""
        if self.tls_ca_file is None or self.tls_certificate_file is None or self.tls_key_file is None:
            return None
        return Identity(self.tls_ca_file, self.tls_certificate_file, self.tls_key_file)


class ProcessSettings(TlsSettings):
    """What every process of Saucer can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # host:port of /metrics; port 0 takes a free one.
    metrics_listen: str = "127.0.0.1:0"
    # An OTLP collector's gRPC, like http://collector:4317; empty: no traces are recorded.
    otlp_endpoint: str = Field(default="", pattern="^(https?://.+)?$")
    # Of the traces that begin here, the share that is recorded.
    trace_ratio: float = Field(default=1.0, ge=0, le=1)


class ServerSettings(ProcessSettings):
    """What every gRPC server needs."""

    # host:port of the gRPC server.
    listen: str
    nats_url: str
    # JWK set of the keys whose tokens are believed.
    public_keys_file: Path
    # Ids of revoked tokens, one a line.
    revoked_tokens_file: Path | None = None
    # For requests that carry bytes (images, chunks of uploads) while they are received and answered: two thirds for
    # calls, one for streams of requests (byte_budget.py shares them out). One that does not fit is RESOURCE_EXHAUSTED.
    receiving_memory_bytes: int = Field(default=RECEIVING_BYTES, ge=8 * MAX_MESSAGE_BYTES)


class ServiceSettings(ServerSettings):
    """What every service needs."""

    database_url: str
    # Events stay in the stream and in the outbox, from which a lost stream is filled again.
    events_keep_days: int = Field(default=KEEP_DAYS, ge=1, le=3650)
    # NATS servers that each keep a copy of the stream, if this process makes it; of one that is there it changes
    # nothing. A single server can keep one.
    stream_replicas: int = Field(default=1, ge=1, le=5)
    # The record of who did what.
    calls_keep_days: int = Field(default=400, ge=1, le=3650)

    @property
    def stream_shape(self) -> StreamShape:
        """The stream as it is to be."""
        return StreamShape(self.events_keep_days, self.stream_replicas)


class CallingSettings(ServiceSettings):
    """What a service needs that calls others."""

    # Its own token.
    token_file: Path


S = TypeVar("S", bound=ProcessSettings)


def load(kind: type[S]) -> S:
    """Reads SAUCER_* variables. Ends the process with a sentence for each that is unknown, missing or bad."""
    problems = [_unknown(name, kind) for name in os.environ if name.startswith(PREFIX) and not _known(name, kind)]
    try:
        secrets = SECRETS_FOLDER if SECRETS_FOLDER.is_dir() else None
        settings = kind(_secrets_dir=secrets)  # type: ignore[call-arg]  # an argument of pydantic-settings' own
    except ValidationError as error:
        problems += [_bad(detail["loc"], detail["msg"]) for detail in error.errors()]
    if problems:
        sys.exit("\n".join(problems))
    return settings


def _known(name: str, kind: type[ProcessSettings]) -> bool:
    return name in COMMAND_LINE or name.removeprefix(PREFIX).lower() in kind.model_fields


def _unknown(name: str, kind: type[ProcessSettings]) -> str:
    names = sorted(field.upper() for field in kind.model_fields)
    # Without the prefix, which would make any two alike.
    close = difflib.get_close_matches(name.removeprefix(PREFIX), names, n=1)
    hint = (
        f" Did you mean {PREFIX}{close[0]}?" if close else f" There are: {', '.join(PREFIX + each for each in names)}."
    )
    return f"The setting {name} is unknown.{hint}"


def _bad(location: tuple[int | str, ...], message: str) -> str:
    return f"The setting {PREFIX}{'.'.join(str(part) for part in location).upper()} cannot be used: {message}."
