"""One-shot: the key pair, a token for each role of the platform, and a profile for the command line, into volumes.

    /keys/public/public.json           believed by every server
    /keys/public/revoked.txt           ids of revoked tokens, one a line
    /keys/administrator/private.pem    makes tokens; mounted nowhere else
    /keys/administrator/profile.json   for `saucer` in a container, with the administrator's token;
                                       profile-tls.json where ports have TLS
    /keys/service/token, /keys/worker/token

What is there already stays, so that it may run at each start. Arguments: host:port of each service, as NAME=ADDRESS.
"""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from saucer.lib import auth
from saucer.lib.ids import new_id

KEYS = Path("/keys")
KEY_ID = "compose"
# Where compose.tls.yml mounts the command line's own certificate.
TLS = {
    "ca_file": "/certificates/ca.crt",
    "certificate_file": "/certificates/tls.crt",
    "key_file": "/certificates/tls.key",
}
# Then remove the token's file and start this container again.
TOKEN_LIFETIME = timedelta(days=365)


def main(services: dict[str, str], keys: Path = KEYS) -> None:
    """Writes what is missing."""
    private = keys / "administrator" / "private.pem"
    if not private.exists():
        auth.generate_keys(private, keys / "public" / "public.json", KEY_ID)
    (keys / "public" / "revoked.txt").touch()
    for role in (auth.Role.SERVICE, auth.Role.WORKER):
        _write_once(keys / role / "token", partial(_token, private, role))
    _write_once(keys / "administrator" / "profile.json", partial(_profile, private, services, {}))
    _write_once(keys / "administrator" / "profile-tls.json", partial(_profile, private, services, {"tls": TLS}))


def _write_once(file: Path, text: Callable[[], str]) -> None:
    if file.exists():
        return
    aside = file.with_suffix(".new")
    aside.unlink(missing_ok=True)
    aside.touch(mode=0o600)
    aside.write_text(text())
    aside.rename(file)


def _token(private: Path, role: auth.Role) -> str:
    return auth.mint(
        private.read_bytes(),
        KEY_ID,
        token_id=new_id(),
        subject=f"compose-{role}",
        role=role,
        account_id=None,
        now=datetime.now(UTC),
        lifetime=TOKEN_LIFETIME,
    )


def _profile(private: Path, services: dict[str, str], more: dict[str, object]) -> str:
    profile = {
        "services": services,
        "token": _token(private, auth.Role.ADMINISTRATOR),
        "private_key_file": private.name,
        "key_id": KEY_ID,
        **more,
    }
    return json.dumps(profile, indent=2)


if __name__ == "__main__":
    main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
