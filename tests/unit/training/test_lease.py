"""Tokens, and when a silent worker may be declared lost."""

from saucer.training.lease import Lease, Reachable, hash_of, holds, new_salt, token_of


def test_the_same_request_gets_the_same_token_and_another_attempt_another() -> None:
    first, second = new_salt(), new_salt()
    assert token_of("request", first) == token_of("request", first)
    assert len({token_of("request", first), token_of("request", second), token_of("other", first)}) == 3


def test_only_its_own_token_holds_a_lease() -> None:
    salt = new_salt()
    lease = Lease("worker", hash_of(token_of("request", salt)), hash_of("request"), salt, None)
    assert holds(lease, token_of("request", salt))
    assert not holds(lease, token_of("other", salt))
    assert not holds(None, token_of("request", salt))


def test_what_is_stored_names_neither_token_nor_request() -> None:
    salt = new_salt()
    token = token_of("request", salt)
    lease = Lease("worker", hash_of(token), hash_of("request"), salt, None)
    assert token not in repr(lease)
    assert "'request'" not in repr(lease)


def test_a_break_begins_the_time_anew_in_which_workers_could_be_heard() -> None:
    reachable = Reachable(longest_pause_s=5.0)
    assert [reachable.seen(second) for second in (100.0, 101.0, 104.0)] == [0.0, 1.0, 4.0]
    reachable.broken()
    assert [reachable.seen(second) for second in (105.0, 107.0)] == [0.0, 2.0]
    assert [reachable.seen(second) for second in (113.0, 114.0)] == [0.0, 1.0], "it was frozen for 6 s"
