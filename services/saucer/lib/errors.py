"""Errors that a caller can act on. Domain and use cases raise them; grpc_server turns them into wire form, once."""

from collections.abc import Mapping
from typing import ClassVar


class DomainError(Exception):
    """A refusal with a code, a reason to switch on, a sentence to read and metadata to act on.

    `code` is the name of a gRPC status code; `reason` is UPPER_SNAKE_CASE and part of the API.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, reason: str, message: str, /, **metadata: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}


class InvalidArgumentError(DomainError):
    """The request can never succeed as it is."""

    code = "INVALID_ARGUMENT"


class NotFoundError(DomainError):
    """There is no such thing, or it is not the caller's to know."""

    code = "NOT_FOUND"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(
            f"{kind.upper()}_NOT_FOUND", f"There is no {kind.replace('_', ' ')} {identifier}.", id=identifier
        )


class AlreadyExistsError(DomainError):
    """The id or name is taken by something else."""

    code = "ALREADY_EXISTS"


class FailedPreconditionError(DomainError):
    """The state of the thing does not allow it; the message names the state."""

    code = "FAILED_PRECONDITION"


class PermissionDeniedError(DomainError):
    """The caller's role may not make this call, whatever it is about."""

    code = "PERMISSION_DENIED"


class UnauthenticatedError(DomainError):
    """No token, or none that is valid now."""

    code = "UNAUTHENTICATED"


class ResourceExhaustedError(DomainError):
    """A limit is reached; later, or less, may succeed."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineExceededError(DomainError):
    """The caller, or what it asked for, took longer than is allowed."""

    code = "DEADLINE_EXCEEDED"


class DataLossError(DomainError):
    """Stored bytes are not what their checksum says."""

    code = "DATA_LOSS"


class UnavailableError(DomainError):
    """Something that is needed does not answer now; the same call may succeed later."""

    code = "UNAVAILABLE"


# By these the one that was asked has decided; after any other error the same call may succeed later.
REFUSALS = (FailedPreconditionError, InvalidArgumentError, NotFoundError, AlreadyExistsError)
