"""What is derived for a user who left it open, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.task import parameters, scenes
from saucer.task.defaults import INPUT_SIZES, MAX_EPOCHS, Data, Machine, derive
from saucer.task.domain import Refused
from saucer.task.estimating import OVERHEAD_MS, estimate_ms
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


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_batch_and_an_estimate_are_by_the_gpus_that_are_asked_for_however_many_the_machine_has(gpus: int) -> None:
    data, machine = replace(DATA, training_images=10_000), Machine(gpus, 16)
    one, _ = derive(form(epochs=1), SCENES["object-detection"], data, machine)
    eight, _ = derive(form(epochs=1, count=8), SCENES["object-detection"], data, machine)
    assert (one.batch_size, eight.batch_size) == (16, 128)
    on_one = estimate_ms(form(), eight, data, machine, []) - OVERHEAD_MS
    on_eight = estimate_ms(form(count=8), eight, data, machine, []) - OVERHEAD_MS
    assert on_one == pytest.approx(8 * on_eight, abs=8)
    assert estimate_ms(form(), eight, data, GPU, []) - OVERHEAD_MS == on_one


@given(
    images=st.integers(1, 10**6),
    share=st.floats(0, 1),
    side=st.integers(1, 20_000),
    gpus=st.integers(0, 64),
    count=st.integers(1, 64),
)
def test_whatever_the_data_the_configuration_can_be_trained(
    images: int, share: float, side: int, gpus: int, count: int
) -> None:
    data = replace(DATA, training_images=images, median_box_share=share, median_width=side, median_height=side)
    machine = Machine(gpus, 4)
    config, _ = derive(form(count=count), SCENES["object-detection"], data, machine)
    for parameter in parameters.PARAMETERS:
        parameter.check(getattr(config, parameter.name))
    assert config.input_size in INPUT_SIZES
    assert config.batch_size <= max(count, images)
    assert config.batch_size % count == 0
    assert config.epochs <= MAX_EPOCHS
    assert config.warmup >= 1
    assert estimate_ms(form(count=count), config, data, machine, []) > 0
