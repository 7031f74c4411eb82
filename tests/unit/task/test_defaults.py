"""What is derived for a user who left it open, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.task import scenes
from saucer.task.defaults import INPUT_SIZES, MAX_EPOCHS, Data, Machine, derive
from saucer.task.domain import Refused
from saucer.task.estimating import estimate_ms
from tests.unit.task.examples import DATA, form

CPU = Machine(gpus=0, cpu_cores=2)
GPU = Machine(gpus=1, cpu_cores=16)
SCENES = scenes.load()


def test_every_default_comes_with_its_reason() -> None:
    _, derived = derive(form(), SCENES["object-detection"], DATA, CPU)
    assert {note.field for note in derived} >= {"input_size", "batch_size", "epochs", "lr", "warmup", "max_duration"}
    assert all(note.reason for note in derived)


def test_what_the_user_chose_is_taken_as_it_is() -> None:
    chosen = form(epochs=3, lr=0.01, batch_size=4, warmup=0, input_size=128, max_duration_ms=60_000)
    config, derived = derive(chosen, SCENES["object-detection"], DATA, CPU)
    assert (config.epochs, config.lr, config.batch_size, config.warmup) == (3, 0.01, 4, 0)
    assert {note.field for note in derived} == {"starting_point"}


def test_small_objects_get_a_larger_input_and_a_processor_a_limit() -> None:
    tiny = replace(DATA, median_box_share=0.0005, median_width=4000, median_height=3000)
    on_gpu, _ = derive(form(), SCENES["object-detection"], tiny, GPU)
    on_cpu, _ = derive(form(), SCENES["object-detection"], tiny, CPU)
    assert on_gpu.input_size == 640
    assert on_cpu.input_size == 320


def test_the_cup_and_plate_scene_refuses_data_without_its_classes() -> None:
    with pytest.raises(Refused, match="plate"):
        derive(form(), SCENES["cup-and-plate"], replace(DATA, classes=("cup", "fork")), CPU)


def test_the_cup_and_plate_scene_knows_what_cups_and_plates_are_commonly_called() -> None:
    named = replace(DATA, classes=("Mug", "plate", "cup", "dinner plate", "fork"))
    config, _ = derive(form(), SCENES["cup-and-plate"], named, CPU)
    assert config.classes == ("cup", "plate", "fork")
    assert config.label_names == (("Mug", "cup"), ("dinner plate", "plate"))
    assert derive(form(), SCENES["object-detection"], named, CPU)[0].classes == named.classes


@pytest.mark.parametrize(("scene", "whole"), [("image-classification", False), ("object-detection", True)])
def test_labels_of_the_other_kind_are_refused_and_say_which_scene_fits(scene: str, whole: bool) -> None:
    with pytest.raises(Refused, match="take the scene") as refusal:
        derive(form(), SCENES[scene], replace(DATA, labels_whole_images=whole), CPU)
    assert refusal.value.reason == "LABEL_KIND_UNSUITABLE"


def test_a_classification_has_a_size_of_its_own_and_says_what_it_is() -> None:
    whole = replace(DATA, labels_whole_images=True, median_box_share=0.0)
    config, _ = derive(form(), SCENES["image-classification"], whole, CPU)
    assert (config.classification, config.input_size, config.expected_accuracy) == (True, 192, None)


def test_the_cup_and_plate_scene_has_its_own_expected_accuracy_and_a_form_overrides_it() -> None:
    assert derive(form(), SCENES["cup-and-plate"], DATA, CPU)[0].expected_accuracy == 0.88
    assert derive(form(expected_accuracy=0.5), SCENES["cup-and-plate"], DATA, CPU)[0].expected_accuracy == 0.5


def test_data_without_training_images_is_refused() -> None:
    with pytest.raises(Refused, match="no images"):
        derive(form(), SCENES["object-detection"], replace(DATA, training_images=0), CPU)


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_data_without_a_label_is_refused_and_told_to_be_labelled_whatever_the_scene(scene: str) -> None:
    imported = replace(DATA, classes=(), labels=0, training_labels=0, validation_labels=0)
    with pytest.raises(Refused, match="draft") as refusal:
        derive(form(), SCENES[scene], imported, CPU)
    assert refusal.value.reason == "NO_LABELS"


@pytest.mark.parametrize(
    ("split", "unlabelled"),
    [("training", replace(DATA, training_labels=0)), ("validation", replace(DATA, validation_labels=0))],
)
@pytest.mark.parametrize("scene", ["object-detection", "image-classification"])
def test_a_split_without_labels_is_refused_though_others_have_some(scene: str, split: str, unlabelled: Data) -> None:
    unlabelled = replace(unlabelled, labels_whole_images=SCENES[scene].classification)
    with pytest.raises(Refused, match=f"{split} split") as refusal:
        derive(form(), SCENES[scene], unlabelled, CPU)
    assert refusal.value.reason == "NO_LABELS"


@given(
    images=st.integers(1, 10**6),
    share=st.floats(0, 1),
    side=st.integers(1, 20_000),
    gpus=st.integers(0, 8),
)
def test_whatever_the_data_the_configuration_can_be_trained(images: int, share: float, side: int, gpus: int) -> None:
    data = replace(DATA, training_images=images, median_box_share=share, median_width=side, median_height=side)
    machine = Machine(gpus, 4)
    config, _ = derive(form(), SCENES["object-detection"], data, machine)
    assert config.input_size in INPUT_SIZES
    assert 1 <= config.batch_size <= max(1, images)
    assert 1 <= config.epochs <= MAX_EPOCHS
    assert 0 < config.lr <= 1
    assert config.warmup >= 1
    assert estimate_ms(form(), config, data, machine, []) > 0
