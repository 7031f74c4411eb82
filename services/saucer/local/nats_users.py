"""NATS' users: each service publishes its own events and no others, and takes from its own consumer alone.

`saucer` may do everything: for the administrator's own systems. deploy/nats/nats.conf has the same users.
A service lays its consumer out itself, so that what it may read is a matter of its code; what it may write is not.
"""

from collections.abc import Callable

from saucer.lib.consumer import STREAM

ADMINISTRATOR = "saucer"
CONSUMING = ("billing", "dataset", "task", "training", "evaluation", "publishing")
READING = "gateway"
# Everybody makes sure of the stream.
_STREAM = [f"$JS.API.STREAM.{verb}.{STREAM}" for verb in ("INFO", "CREATE", "UPDATE")]


def publishes(user: str) -> list[str]:
    """The subjects that a service's user may publish to."""
    if user == READING:
        # Its consumers are short-lived, and named by the server.
        verbs = ("CREATE", "INFO", "DELETE", "MSG.NEXT")
        return [
            *_STREAM,
            f"$JS.API.CONSUMER.CREATE.{STREAM}",
            *(f"$JS.API.CONSUMER.{verb}.{STREAM}.>" for verb in verbs),
        ]
    own = f"{STREAM}.{user}"
    return [
        f"saucer.{user}.v1.>",
        *_STREAM,
        f"$JS.API.CONSUMER.DURABLE.CREATE.{own}",
        f"$JS.API.CONSUMER.CREATE.{own}",
        f"$JS.API.CONSUMER.CREATE.{own}.>",
        f"$JS.API.CONSUMER.INFO.{own}",
        f"$JS.API.CONSUMER.MSG.NEXT.{own}",
        f"$JS.ACK.{own}.>",
    ]


def authorization(password: Callable[[str], str]) -> str:
    """The block of nats.conf; `password` gives a user's, as it is to stand there."""
    users = [f"    {{ user: {ADMINISTRATOR}, password: {password(ADMINISTRATOR)} }}"]
    for user in (*CONSUMING, READING):
        subjects = ", ".join(f'"{subject}"' for subject in publishes(user))
        users.append(
            f"    {{ user: {user}, password: {password(user)}, permissions: {{\n"
            f"      publish: [{subjects}]\n"
            f'      subscribe: ["{inbox(user)}.>"]\n'
            "    } }"
        )
    return "authorization {\n  users: [\n" + "\n".join(users) + "\n  ]\n}\n"


def inbox(user: str) -> str:
    """Where answers come to: its own, so that nobody reads another's."""
    return f"_INBOX_{user}"
