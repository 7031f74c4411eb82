"""NATS' users: each service publishes its own events and no others, and takes from its own consumer alone.

`saucer` may do everything: for the administrator's own systems. deploy/nats/nats.conf has the same users.
A service lays its consumer out itself, so that what it may read is a matter of its code; what it may write is not.
Each service may make the stream, so that they start in any order; while there is one that changes nothing. Changing it
is one service's: whoever may do that can drop events, or let what others publish come in under another subject. The
gateway reads by consumers that it names, and may touch none that a service depends on.
"""

from collections.abc import Callable

from saucer.lib.stream import STREAM

ADMINISTRATOR = "saucer"
CONSUMING = ("billing", "dataset", "task", "training", "evaluation", "publishing")
READING = "gateway"
# Brings the stream up to date.
KEEPING = "billing"


def publishes(user: str) -> list[str]:
    """The subjects that a service's user may publish to."""
    if user == READING:
        verbs = ("CREATE", "INFO", "DELETE", "MSG.NEXT")
        return [_stream("INFO"), *(f"$JS.API.CONSUMER.{verb}.{STREAM}.>" for verb in verbs)]
    own = f"{STREAM}.{user}"
    return [
        f"saucer.{user}.v1.>",
        *(_stream(verb) for verb in ("INFO", "CREATE")),
        *([_stream("UPDATE")] if user == KEEPING else []),
        f"$JS.API.CONSUMER.DURABLE.CREATE.{own}",
        f"$JS.API.CONSUMER.CREATE.{own}",
        f"$JS.API.CONSUMER.CREATE.{own}.>",
        f"$JS.API.CONSUMER.INFO.{own}",
        f"$JS.API.CONSUMER.MSG.NEXT.{own}",
        f"$JS.ACK.{own}.>",
    ]


def denied(user: str) -> list[str]:
    """Of what publishes() allows by a pattern, what is refused all the same."""
    if user != READING:
        return []
    verbs = ("CREATE", "DELETE", "MSG.NEXT")
    consumers = [f"$JS.API.CONSUMER.{verb}.{STREAM}.{service}" for service in CONSUMING for verb in verbs]
    return [*consumers, *(f"$JS.API.CONSUMER.CREATE.{STREAM}.{service}.>" for service in CONSUMING)]


def _stream(verb: str) -> str:
    return f"$JS.API.STREAM.{verb}.{STREAM}"


def authorization(password: Callable[[str], str]) -> str:
    """The block of nats.conf; `password` gives a user's, as it is to stand there."""
    users = [f"    {{ user: {ADMINISTRATOR}, password: {password(ADMINISTRATOR)} }}"]
    for user in (*CONSUMING, READING):
        publish = _listed(publishes(user))
        if denied(user):
            publish = f"{{ allow: {publish}, deny: {_listed(denied(user))} }}"
        users.append(
            f"    {{ user: {user}, password: {password(user)}, permissions: {{\n"
            f"      publish: {publish}\n"
            f'      subscribe: ["{inbox(user)}.>"]\n'
            "    } }"
        )
    return "authorization {\n  users: [\n" + "\n".join(users) + "\n  ]\n}\n"


def _listed(subjects: list[str]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"


def inbox(user: str) -> str:
    """Where answers come to: its own, so that nobody reads another's."""
    return f"_INBOX_{user}"
