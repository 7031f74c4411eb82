"""What is expected of a run, from what others took."""

from dataclasses import replace

from saucer.task.defaults import Machine
from saucer.task.estimating import NEWEST, OVERHEAD_MS, Pace, estimate_ms, megapixels
from tests.unit.task import examples
from tests.unit.task.examples import NOW, config, form

CPU = Machine(gpus=0, cpu_cores=2)
DATA = replace(examples.DATA, classes=("cup",), training_images=100, validation_images=20, test_images=20)
CONFIG = config()
WORK = megapixels(CONFIG.epochs * 13 * CONFIG.batch_size, CONFIG.input_size)
PACE = Pace("r", "local", "cpu-2", 1, "imagenet-lite0", False, "d", 192, 1000.0, 20_000, NOW)


def estimated(*paces: Pace) -> int:
    return estimate_ms(form(), CONFIG, DATA, CPU, paces)


def test_before_anything_was_measured_a_rule_of_thumb_has_to_do() -> None:
    assert (
        estimated()
        == estimated(replace(PACE, starting_point="scratch"))
        == estimated(replace(PACE, classification=True))
    )
    assert estimated() > 30_000


def test_the_second_run_of_a_kind_is_expected_to_take_what_the_first_took() -> None:
    assert estimated(PACE) == round(20_000 + 1000 * WORK)


def test_runs_on_the_same_data_and_of_the_nearest_size_count_before_others() -> None:
    others = [
        replace(PACE, dataset_version_id="e", ms_per_megapixel=1.0),
        replace(PACE, input_size=320, ms_per_megapixel=2.0),
    ]
    assert estimated(*others, PACE) == estimated(PACE)
    assert estimated(others[1]) == round(20_000 + 2 * WORK)


def test_one_odd_run_does_not_count_and_old_ones_are_forgotten() -> None:
    odd = replace(PACE, ms_per_megapixel=50_000.0)
    old = [replace(PACE, ms_per_megapixel=1.0)] * 50
    assert estimated(odd, *[PACE] * (NEWEST - 1), *old) == estimated(PACE)


def test_a_prediction_is_expected_to_take_what_its_images_take() -> None:
    predicting = replace(CONFIG, model_id="m", epochs=0, batch_size=0)
    work = megapixels(DATA.validation_images + DATA.test_images, CONFIG.input_size)
    assert estimate_ms(form(), predicting, DATA, CPU, [PACE]) == round(20_000 + 1000 * work)
    assert OVERHEAD_MS < estimate_ms(form(), predicting, DATA, CPU, []) < estimated()
