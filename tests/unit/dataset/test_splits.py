from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saucer.dataset.splits import EMPTY, MIN_IMAGES_TO_SPREAD, SHARES, Split, SplitImage, assign_splits, stratify

CLASSES = st.frozensets(st.integers(0, 5), max_size=4)
OWN = st.sampled_from([None, *Split])


def images_of(classes: list[frozenset[int]], own: list[Split | None] | None = None) -> list[SplitImage]:
    splits = own or [None] * len(classes)
    return [SplitImage(f"key{n}", c, s) for n, (c, s) in enumerate(zip(classes, splits, strict=True))]


def by_key(images: list[SplitImage], seed: int) -> dict[str, Split]:
    return dict(zip([image.key for image in images], assign_splits(images, seed), strict=True))


@given(st.lists(CLASSES, max_size=60), st.integers(), st.randoms())
def test_the_split_depends_on_images_and_seed_not_on_order(
    classes: list[frozenset[int]], seed: int, random: object
) -> None:
    images = images_of(classes)
    shuffled = images.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert by_key(images, seed) == by_key(shuffled, seed) == by_key(images, seed)
    assert len(by_key(images, seed)) == len(images)


@given(st.lists(st.integers(-1, 7), max_size=80), st.integers())
def test_every_class_of_three_images_is_in_each_split(classes: list[int], seed: int) -> None:
    images = images_of([frozenset() if c < 0 else frozenset({c}) for c in classes])
    splits = assign_splits(images, seed)
    for label, count in Counter(classes).items():
        present = {split for split, c in zip(splits, classes, strict=True) if c == label}
        assert len(present) == 3 or count < MIN_IMAGES_TO_SPREAD
    if len(images) >= MIN_IMAGES_TO_SPREAD:
        assert set(splits) == set(Split)
    if images:
        assert Split.TRAIN in splits


@settings(max_examples=200)
@given(st.lists(CLASSES, min_size=3, max_size=40), st.integers())
# A move for class 4 makes one for a class before it possible.
@example([frozenset(c) for c in ({0, 1, 3, 5}, {1, 4}, {1, 4}, {0, 3, 4}, {0, 2, 3, 5}, {0, 2, 3, 5})], 0)
def test_where_a_class_is_missing_no_single_move_would_help(classes: list[frozenset[int]], seed: int) -> None:
    labels = [{*(c or {-1}), -2} for c in classes]
    splits = assign_splits(images_of(classes), seed)
    spread = {label for label, n in Counter(x for own in labels for x in own).items() if n >= MIN_IMAGES_TO_SPREAD}
    count = Counter((label, split) for own, split in zip(labels, splits, strict=True) for label in own)
    for label in spread:
        for split in Split:
            if not count[label, split]:
                donors = [
                    row
                    for row, own in enumerate(labels)
                    if label in own and all(count[other, splits[row]] > 1 for other in own & spread)
                ]
                assert not donors


@given(st.lists(st.tuples(CLASSES, OWN), max_size=60), st.integers())
def test_the_sources_own_split_is_kept(rows: list[tuple[frozenset[int], Split | None]], seed: int) -> None:
    images = images_of([c for c, _ in rows], [s for _, s in rows])
    own = {image.split for image in images}
    for image, split in zip(images, assign_splits(images, seed), strict=True):
        if len(own) > 1 and own & {Split.TRAIN, None}:
            if image.split in (Split.VALIDATION, Split.TEST):
                assert split is image.split
            elif own >= {Split.VALIDATION, Split.TEST}:
                assert split is Split.TRAIN


def test_a_missing_validation_is_taken_from_train() -> None:
    images = [SplitImage(f"a{n}", frozenset({n % 2}), Split.TRAIN) for n in range(85)]
    images += [SplitImage(f"b{n}", frozenset({0}), Split.TEST) for n in range(7)]
    counts = Counter(assign_splits(images, 1))
    assert counts[Split.TEST] == 7
    assert counts[Split.VALIDATION] in (14, 15, 16)


def test_a_test_split_is_kept_where_only_its_images_state_one() -> None:
    images = images_of([frozenset({0})] * 20, [None] * 17 + [Split.TEST] * 3)
    splits = assign_splits(images, 1)
    assert splits[17:] == [Split.TEST] * 3
    assert Counter(splits[:17]) == {Split.TRAIN: 14, Split.VALIDATION: 3}


def test_a_source_with_only_a_test_split_is_split_anew() -> None:
    assert set(assign_splits(images_of([frozenset({0})] * 9, [Split.TEST] * 9), 0)) == set(Split)


def test_shares_hold_for_each_class() -> None:
    images = images_of([frozenset({n % 3, 3} if n % 2 else {n % 3}) for n in range(600)])
    splits = stratify(images, SHARES, 7)
    for label in range(4):
        counts = Counter(s for s, image in zip(splits, images, strict=True) if label in image.classes)
        total = sum(counts.values())
        for split, share in SHARES.items():
            assert counts[split] / total == pytest.approx(share, abs=0.03)


def test_empty_images_are_shared_out_apart_from_unlabelled_ones() -> None:
    images = images_of([frozenset({EMPTY})] * 20 + [frozenset()] * 180)
    splits = assign_splits(images, 5)
    assert Counter(splits[:20]) == {Split.TRAIN: 14, Split.VALIDATION: 3, Split.TEST: 3}
    assert Counter(splits) == {Split.TRAIN: 140, Split.VALIDATION: 30, Split.TEST: 30}


def test_another_seed_is_another_split() -> None:
    images = images_of([frozenset({0})] * 50)
    assert assign_splits(images, 1) != assign_splits(images, 2)


def test_one_image_goes_to_train() -> None:
    assert assign_splits(images_of([frozenset({0})]), 0) == [Split.TRAIN]
    assert assign_splits([], 0) == []
