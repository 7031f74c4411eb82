"""Failures as sentences that say what to do. Exit code 1; click's own usage errors are 2."""

from collections.abc import Mapping
from typing import cast

import click
import grpc

from saucer.lib.errors import DomainError
from saucer.lib.grpc_client import RpcFailure, from_rpc

HINTS: Mapping[str, str] = {
    "INSUFFICIENT_BALANCE": "Add money with `saucer account topup ACCOUNT AMOUNT`; then `saucer task restart TASK` "
    "starts a task that was refused.",
    "TOKEN_MISSING": "Give a token with --token or SAUCER_TOKEN, or a profile that has one with --profile.",
    "TOKEN_INVALID": "Give another with --token; an administrator makes one with `saucer token create`.",
    "TOKEN_EXPIRED": "An administrator makes a new one with `saucer token create`.",
    "TOKEN_REVOKED": "An administrator makes a new one with `saucer token create`.",
    "ACCOUNT_REQUIRED": "Name it with --account; `saucer account list` shows them.",
    "REQUEST_ID_USED": "Leave --request-id out, and a new one is made.",
}
# What a failed call may have done is unknown after these.
_UNCERTAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


class CliError(click.ClickException):
    """Ends the command with 1 and a sentence."""

    exit_code = 1


def domain_error(error: grpc.RpcError) -> DomainError:
    """The typed error of a failed call."""
    return from_rpc(cast(RpcFailure, error))


def is_not_found(error: grpc.RpcError) -> bool:
    """There is no such thing, or it is not the token's to know."""
    return cast(RpcFailure, error).code() is grpc.StatusCode.NOT_FOUND


def sentence(error: grpc.RpcError, request_id: str | None) -> str:
    """What to print. `request_id`: of the command, if it sent one."""
    code = cast(RpcFailure, error).code()
    failure = domain_error(error)
    if failure.reason == "UNAVAILABLE":
        # No handler has answered: the words are grpc's own.
        parts = ["Saucer does not answer; is it running? `saucer up` starts it.", failure.message]
    else:
        metadata = "".join(f", {key} {value}" for key, value in failure.metadata.items())
        # Of wrong fields the message names each, with its rule.
        parts = [failure.message, f"({failure.reason}{'' if failure.reason == 'FIELD_INVALID' else metadata})"]
        if failure.reason in HINTS:
            parts.append(HINTS[failure.reason])
    if code in _UNCERTAIN and request_id is not None:
        parts.append(f"Repeat the command with --request-id {request_id}: nothing will be done twice.")
    return " ".join(parts)
