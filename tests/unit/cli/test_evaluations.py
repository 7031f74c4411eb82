"""Evaluations on the command line: shown, drawn, exported, compared, reported."""

import html
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from saucer.cli import evaluation_options, evaluations
from saucer.drawing import images
from saucer.evaluation.v1 import evaluation_pb2
from saucer.task.v1 import task_pb2
from tests.support.cli import Cli
from tests.unit.cli.script import EVALUATION, HOSTILE, MODEL, TASK, VERSION, Script


def test_a_model_is_evaluated_on_other_data_by_a_task_that_only_predicts(cli: Cli, script: Script) -> None:
    cli("evaluate", MODEL, "--dataset", VERSION)
    form = script.requests[-1].form
    assert (form.kind, form.model_id) == (task_pb2.TASK_KIND_PREDICT, MODEL)
    assert form.dataset_version_id == VERSION
    assert re.fullmatch(r"[\w-]{1,60}", form.display_name)


def test_an_evaluation_is_shown_at_a_threshold_and_drawn(cli: Cli, script: Script, tmp_path: Path) -> None:
    text = cli("evaluation", "show", TASK, "--threshold", "0.25", "--plot", str(tmp_path / "pr.png"))
    assert "0.810" in text
    assert "0.625" in text
    assert "0.456" in text
    assert script.requests[-1].threshold == 0.25
    assert Image.open(tmp_path / "pr.png").format == "PNG"


@pytest.mark.parametrize("state", ["SCORING", "FAILED"])
def test_an_evaluation_that_has_not_succeeded_shows_no_figure(cli: Cli, script: Script, state: str) -> None:
    script.evaluation_state = evaluation_pb2.EvaluationState.Value(f"EVALUATION_STATE_{state}")
    shown = dict(line.split(maxsplit=1) for line in cli("evaluation", "show", EVALUATION).splitlines())
    assert shown.keys() == {"evaluation", "state", "error", "took", "model"}
    assert shown["state"].split() == [state.lower()]


def test_a_list_tells_no_counts_of_an_evaluation_that_is_not_scored_yet(cli: Cli) -> None:
    row = cli("evaluation", "list").splitlines()[-2]
    assert [cell.strip() for cell in row.split("│")[2:-2]] == ["scoring", *"------"]


@pytest.mark.parametrize("verb", ["show", "confusion", "bad-cases", "suspects", "compare"])
def test_a_threshold_is_told_as_it_is_and_not_rounded(cli: Cli, verb: str) -> None:
    base = [TASK] if verb == "compare" else []
    text = cli("evaluation", verb, EVALUATION, *base, "--threshold", "0.996")
    assert "threshold 0.996" in text
    assert "1.00" not in text


def test_a_report_and_a_goal_tell_their_figures_as_they_are_and_not_rounded(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    cli("evaluation", "report", EVALUATION, "--output", str(file), "--threshold", "0.996")
    assert "precision at 0.996" in file.read_text()
    assert file.read_text().count("at threshold 0.996") == 3
    assert "precision 0.998" in cli("evaluation", "thresholds", EVALUATION, "--precision", "0.998")


def test_a_confusion_matrix_is_a_table_and_a_picture(cli: Cli, tmp_path: Path) -> None:
    text = cli("evaluation", "confusion", EVALUATION, "--threshold", "0.25", "--plot", str(tmp_path / "matrix.png"))
    assert [line.split()[1::2] for line in text.splitlines() if "background" in line][-1] == [
        "background",
        "4",
        "0",
        "0",
    ]
    assert Image.open(tmp_path / "matrix.png").format == "PNG"
    assert cli.json("evaluation", "confusion", EVALUATION)["classNames"] == ["cup", "plate"]


def test_of_many_classes_a_table_shows_the_first_and_says_how_to_see_all(
    cli: Cli, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "MOST_COLUMNS", 1)
    monkeypatch.setattr(evaluation_options, "MOST_ROWS", 1)
    few, every = (cli("evaluation", "confusion", EVALUATION, *more) for more in ((), ("--all",)))
    assert ("plate" in few, "plate" in every) == (False, True)
    assert [line.split()[1::2] for line in few.splitlines() if "background" in line][-1] == ["background", "4", "0"]
    few, every = (
        cli("evaluation", "thresholds", EVALUATION, "--precision", "0.95", *more) for more in ((), ("--all",))
    )
    assert ("cup" in few, "cup" in every) == (False, True)


def test_recommended_thresholds_say_what_they_do_and_with_what_certainty(cli: Cli, script: Script) -> None:
    text = cli("evaluation", "thresholds", EVALUATION, "--precision", "0.95")
    assert script.requests[-1].precision == 0.95
    assert not script.requests[-1].HasField("recall")
    assert " 0.87365 " in text
    assert "0.600 - 0.980" in text
    assert "precision 0.95" in text


def test_recommended_thresholds_are_shown_with_what_they_do_on_both_splits(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    cli("evaluation", "report", EVALUATION, "--output", str(file))
    for text in (cli("evaluation", "thresholds", EVALUATION), file.read_text()):
        row = next(line for line in text.splitlines() if "0.87365" in line)
        assert row.index("0.900") < row.index("0.917") < row.index("0.683")
        assert "validation precision" in text
        assert "validation recall" in text


def test_a_classifier_that_gives_no_sure_answer_is_unsure_and_misses_nothing(
    cli: Cli, script: Script, tmp_path: Path
) -> None:
    script.classification = True
    file = tmp_path / "report.html"
    cli("evaluation", "report", EVALUATION, "--output", str(file))
    for text in (cli("evaluation", "bad-cases", EVALUATION), file.read_text()):
        assert "unsure of cup" in text
        assert "confused of plate" in text
        assert "miss of" not in text


def test_bad_cases_read_images_only_for_the_sheet(cli: Cli, script: Script, tmp_path: Path) -> None:
    assert "3 x miss of cup, false positive of plate" in cli("evaluation", "bad-cases", EVALUATION, "--kind", "miss")
    assert not script.requests[-1].include_images
    cli("evaluation", "bad-cases", EVALUATION, "--sheet", str(tmp_path / "sheet.png"))
    assert script.requests[-1].include_images
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


def test_a_sheet_says_how_many_there_are_of_what_is_asked_for(
    cli: Cli, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def titled(file: Path, *_: object, title: str, **__: object) -> None:
        titles.append(title)
        file.touch()

    monkeypatch.setattr(images, "sheet", titled)
    sheet = ("--sheet", str(tmp_path / "sheet.png"))
    cli("evaluation", "bad-cases", EVALUATION, *sheet, "--kind", "miss", "--kind", "confused", "--class", "cup")
    cli("evaluation", "bad-cases", EVALUATION, *sheet, "--min-score", "0.4")
    cli("evaluation", "bad-cases", EVALUATION, *sheet)
    script.classification = True
    cli("evaluation", "bad-cases", EVALUATION, *sheet, "--kind", "miss")
    cli("evaluation", "images", EVALUATION, *sheet, "--class", "cup")
    assert titles == [
        "3 bad cases of 10 images, at threshold 0.25: miss or confused of cup",
        "3 bad cases of 10 images, at threshold 0.25: any fault with a score from 0.4 to 1",
        "3 bad cases of 10 images, at threshold 0.25",
        "2 bad cases of 10 images, at threshold 0.25: unsure",
        "1 of 10 images of the test split, with a label of cup",
    ]


@pytest.mark.parametrize("verb", ["bad-cases", "images"])
def test_no_more_images_are_read_than_a_sheet_has_room_for(
    cli: Cli, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    script.endless = True
    monkeypatch.setattr(images, "MAX_TILES", 3)
    sheet = ("--sheet", str(tmp_path / "sheet.png"))
    for limit, drawn, said in (
        ("200", 3, "A sheet has room for 3 images; no other is read."),
        ("2", 2, "There are more than these 2; --limit says how many."),
    ):
        script.requests.clear()
        remarks = cli.result("evaluation", verb, EVALUATION, *sheet, "--limit", limit).stderr
        assert sum(request.page_size for request in script.requests[1:]) == drawn
        assert said in remarks
        assert remarks.count("\n") == 2  # that and what is drawn
    script.requests.clear()
    cli("evaluation", verb, EVALUATION, "--limit", "200")
    assert script.requests[-1].page_size == 200


def test_bad_cases_are_exported_in_the_form_that_the_name_says(cli: Cli, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "cases.CSV"
    cli("evaluation", "bad-cases", EVALUATION, "--export", str(file), "--min-score", "0.4", "--kind", "confused")
    asked = script.requests[-1]
    assert file.read_text() == "image_id,file_name"
    assert (asked.format, asked.min_score) == (evaluation_pb2.EXPORT_FORMAT_CSV, 0.4)
    assert list(asked.kinds) == [evaluation_pb2.FAULT_KIND_CONFUSED]
    assert not asked.HasField("max_score")
    assert "must end in .csv or .json" in cli.fails("evaluation", "bad-cases", EVALUATION, "--export", "x.txt", code=2)


def test_bad_cases_are_not_exported_and_drawn_at_once(cli: Cli, script: Script, tmp_path: Path) -> None:
    both = ("--export", str(tmp_path / "cases.csv"), "--sheet", str(tmp_path / "sheet.png"))
    said = cli.fails("evaluation", "bad-cases", EVALUATION, *both, code=2)
    assert "--export" in said
    assert "--sheet" in said
    assert not script.requests
    assert not list(tmp_path.glob("cases*"))


@pytest.mark.parametrize(
    ("verb", "option", "name", "possible"),
    [
        *((verb, "--plot", "x.pdf", ".png or .svg") for verb in ("show", "confusion", "scores")),
        *((verb, "--sheet", "x.svg", ".png") for verb in ("bad-cases", "images")),
        ("show", "--plot", "x", ".png or .svg"),
    ],
)
def test_a_picture_is_not_drawn_into_a_file_of_another_form(
    cli: Cli, script: Script, tmp_path: Path, verb: str, option: str, name: str, possible: str
) -> None:
    said = cli.fails("evaluation", verb, EVALUATION, option, str(tmp_path / name), code=2)
    assert f"must end in {possible}." in said
    assert not script.requests
    assert not (tmp_path / name).exists()


READS_IMAGES = [
    ("bad-cases", "--sheet", "sheet.png"),
    ("bad-cases", "--export", "cases.csv"),
    ("images", "--sheet", "sheet.png"),
    ("report", "--output", "report.html"),
]


@pytest.mark.parametrize(("verb", "option", "name"), READS_IMAGES)
def test_a_file_that_cannot_be_written_is_noticed_before_anything_is_read_for_it(
    cli: Cli, script: Script, tmp_path: Path, verb: str, option: str, name: str
) -> None:
    file = tmp_path / "no such folder" / name
    assert f"{file} cannot be written" in cli.fails("evaluation", verb, EVALUATION, option, str(file))
    assert [type(request) for request in script.requests] == [evaluation_pb2.GetEvaluationRequest]


@pytest.mark.parametrize(("verb", "option", "name"), READS_IMAGES)
def test_a_file_stays_as_it_was_where_what_is_to_be_in_it_does_not_come(
    cli: Cli, script: Script, tmp_path: Path, verb: str, option: str, name: str
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / name).write_text("as it was")
    script.fail_lists = True
    assert "The store is away." in cli.fails("evaluation", verb, EVALUATION, option, str(folder / name))
    assert {file.name: file.read_text() for file in folder.iterdir()} == {name: "as it was"}


def test_suspected_labels_are_listed_with_what_was_found(cli: Cli) -> None:
    row = cli("evaluation", "suspects", EVALUATION).splitlines()[-2]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["0.750", "wrong class", "b.jpg", "cup", "plate 0.80"]


def test_two_evaluations_are_compared_by_class_and_by_image(cli: Cli, script: Script) -> None:
    text = cli("evaluation", "compare", TASK, EVALUATION, "--change", "better", "--threshold", "0.4")
    asked = script.requests[-1]
    assert (asked.evaluation_id, asked.base_evaluation_id) == (EVALUATION, EVALUATION)
    assert (asked.change, asked.threshold) == (evaluation_pb2.CHANGE_BETTER, 0.4)
    assert "2 better, 1 worse, 7 the same" in text
    assert "0.875" in text
    assert cli.json("evaluation", "compare", TASK, EVALUATION)["images"][0]["fileName"] == "a.jpg"


def test_scores_are_counted_and_drawn(cli: Cli, tmp_path: Path) -> None:
    text = cli("evaluation", "scores", EVALUATION, "--class", "cup", "--plot", str(tmp_path / "scores.png"))
    assert "333" in text
    assert Image.open(tmp_path / "scores.png").format == "PNG"
    assert "no class fork" in cli.fails("evaluation", "scores", EVALUATION, "--class", "fork")


def test_test_images_are_read_only_for_the_sheet(cli: Cli, script: Script, tmp_path: Path) -> None:
    assert "2 cup, 1 plate" in cli("evaluation", "images", EVALUATION, "--class", "cup")
    assert (script.requests[-1].include_images, script.requests[-1].class_name) == (False, "cup")
    cli("evaluation", "images", EVALUATION, "--sheet", str(tmp_path / "sheet.png"))
    assert script.requests[-1].include_images
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


def test_a_report_is_one_page_that_fetches_and_runs_nothing(cli: Cli, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    cli("evaluation", "report", TASK, "--output", str(file), "--threshold", "0.25")
    assert not any(getattr(request, "include_images", False) for request in script.requests)
    text = file.read_text()
    without_pictures = re.sub(r"data:[^\"]*", "", text)
    assert "0.810" in without_pictures
    assert "0.456" in without_pictures
    assert "miss of cup" in without_pictures
    assert "wrong class" in without_pictures
    assert without_pictures.count("<img") == 3
    assert not re.search(r"<script|https?:|<link|@import", without_pictures)
    assert html.escape(HOSTILE) in without_pictures
    assert HOSTILE not in text
    ElementTree.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>|<img[^>]*>", "", text))
    cli("evaluation", "report", TASK, "--output", str(file), "--images", "1")
    assert any(getattr(request, "include_images", False) for request in script.requests)
    assert "data:image/png" in file.read_text()


def test_a_report_without_recommendations_says_why(cli: Cli, script: Script, tmp_path: Path) -> None:
    script.validation_kept = False
    cli("evaluation", "report", EVALUATION, "--output", str(tmp_path / "report.html"))
    assert "There are none &amp; so on." in (tmp_path / "report.html").read_text()


def test_reads_of_both_services_are_listed_by_day(cli: Cli) -> None:
    told = json.loads(cli("--json", "dataset", "reads"))
    assert [(entry["day"], entry["for"]) for entry in told] == [
        ("2026-11-29", "dataset"),
        ("2026-11-28", "evaluation"),
        ("2026-11-27", "dataset"),
    ]
