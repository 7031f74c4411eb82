"""`saucer token`: made here, from a key that only the administrator has; no service is asked."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from saucer.cli.app import App, Topic, pass_app
from saucer.cli.errors import CliError
from saucer.lib.auth import ACCOUNT_ROLES, Role, mint
from saucer.lib.ids import new_id


@click.group(cls=Topic)
def token() -> None:
    """Who may do what."""


@token.command()
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True)
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True, help="Of validity."
)
@click.option("--subject", help="Who it is for; default: the role.")
@click.option("--key", "key_file", type=click.Path(path_type=Path), help="The private key; default: the profile's.")
@click.option("--key-id", help="As the services' public keys name it; default: the profile's.")
@pass_app
def create(app: App, role: str, days: float, subject: str | None, key_file: Path | None, key_id: str | None) -> None:
    """Make a token. The roles viewer, editor and owner are of the account that --account names."""
    of_account = Role(role) in ACCOUNT_ROLES
    if key_file is None or key_id is None:
        profile = app.connection.profile
        key_file, key_id = key_file or profile.private_key_file, key_id or profile.key_id
    if key_file is None or key_id is None:
        raise click.UsageError("The profile names no private key: give --key and --key-id.")
    account_id = (app.account_id or app.connection.required_account()) if of_account else None
    if not of_account and app.account_id:
        raise click.UsageError(f"The role {role} is the platform's and belongs to no account: leave --account out.")
    token_id, now = new_id(), datetime.now(UTC)
    try:
        text = mint(
            key_file.read_bytes(),
            key_id,
            token_id=token_id,
            subject=subject or role,
            role=Role(role),
            account_id=account_id,
            now=now,
            lifetime=timedelta(days=days),
        )
    except (OSError, ValueError, TypeError) as error:
        raise CliError(f"The private key {key_file} cannot be used: {error}.") from error
    expires = (now + timedelta(days=days)).isoformat(timespec="seconds")
    if app.output.as_json:
        app.output.json(
            {"token": text, "tokenId": token_id, "role": role, "accountId": account_id, "expireTime": expires}
        )
    else:
        click.echo(text)
        app.output.remark(f"Expires {expires}. To revoke it, add its id to the services' revoked tokens: {token_id}")
