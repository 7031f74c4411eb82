"""What was met before is known, whatever was sorted in meanwhile."""

import random

from saucer.dataset.seen import MOST_NEW, Seen, number_of_hash, number_of_text


def test_it_answers_as_a_set_does() -> None:
    draw = random.Random(1)
    numbers = [draw.choice([0, 2**64 - 1, draw.randrange(20_000), draw.getrandbits(64)]) for _ in range(5 * MOST_NEW)]
    seen, known = Seen(), set[int]()
    for number in numbers:
        assert seen.add(number) == (number not in known)
        known.add(number)
    assert len(known) > 2 * MOST_NEW


def test_texts_and_hashes_have_numbers_of_64_bits() -> None:
    assert number_of_text("a.jpg") != number_of_text("b.jpg")
    assert 0 <= number_of_text("ü") < 2**64
    assert number_of_hash("ff" * 8 + "00" * 24) == 2**64 - 1
