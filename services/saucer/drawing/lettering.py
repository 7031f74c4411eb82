"""Names as they stand on pictures."""

MAX_NAME = 30  # characters of a class's name


def short(name: str) -> str:
    """The name, or its beginning and its end, since names that begin alike are told apart by the end."""
    if len(name) <= MAX_NAME:
        return name
    head = MAX_NAME // 2
    return f"{name[:head]}…{name[head + 1 - MAX_NAME :]}"
