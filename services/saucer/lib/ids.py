"""Ids. Made at the edges and passed in as arguments, so that a retry carries the same one."""

from uuid import NAMESPACE_URL, uuid5

from uuid6 import uuid7


def new_id() -> str:
    """A UUIDv7 (RFC 9562) as text: unique, and ascending in time, so that primary keys append."""
    return str(uuid7())


def derived_id(*parts: object) -> str:
    """A UUIDv5 of the parts: the same parts give the same id on every replica and every retry."""
    return str(uuid5(NAMESPACE_URL, "/".join(str(part) for part in parts)))
