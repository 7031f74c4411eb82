"""`saucer demo`: the main job on real parts, by the very commands that a user types, and figures for a script to check.

1. A stack of its own in FOLDER/stack, started from nothing.
2. An account with money, an owner's token.
3. Images: synthetic scenes, or somebody's own folder; imported.
4. A quote, a task, its training under the eyes of the user.
5. The evaluation as a table and as pictures.
6. A deployment, whose replay must agree with the evaluation; boxes on new images; the stop.
7. The statement, the audit, and the bill computed once more from nothing but the events.
"""

import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from saucer.cli.main import main as saucer
from saucer.local.process import ServerStartError
from saucer.local.scenes import generate
from saucer.local.stack import Stack
from saucer.local.triton_env import TritonEnvironmentError
from saucer.serving.detections import Detections

SCENES = 480
SCENES_SEED = 2026
NEW_SCENES = 10  # the fewest that the generator makes
NEW_SEED = 7
SHOWN_IMAGES = 6
TOP_UP = "20"
MAX_DURATION = "270s"
# Somebody's own photographs have no floor.
WANTED_MAP_50 = 0.80
# Long enough for a charge that can be seen.
SERVED_MS = 3_000
# How long billing may take to hear of the last end.
SETTLE_S = 20.0
POLL_S = 0.2


def demo(data: Path | None, folder: Path, project: Path) -> None:
    """Shows all of Saucer. Raises click.ClickException if something is not as promised."""
    asyncio.run(_demo(data, folder.resolve(), project))


async def _demo(data: Path | None, folder: Path, project: Path) -> None:
    started = time.monotonic()
    console = Console(highlight=False)
    _empty(folder)
    stack = Stack(folder / "stack", project, say=lambda text: console.print(Text(text, style="dim")))
    try:
        await stack.start()
    except (ServerStartError, TritonEnvironmentError, OSError) as error:
        raise click.ClickException(str(error)) from error
    try:
        demonstration = Demonstration(stack, folder, console, started)
        await asyncio.to_thread(demonstration.run, data)
    finally:
        console.print(Text("Stopping everything…", style="dim"))
        await stack.stop()
    demonstration.conclude()


def _empty(folder: Path) -> None:
    """Removes a former demonstration; refuses a folder of something else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "stack").exists():
        raise click.ClickException(f"{folder} holds something else than a demonstration; name another with --folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@dataclass
class Demonstration:
    """One walk along the path."""

    stack: Stack
    folder: Path
    console: Console
    started_s: float
    summary: dict[str, Any] = field(default_factory=dict)
    account_id: str = ""

    def run(self, data: Path | None) -> None:
        """From images to the bill."""
        os.environ["SAUCER_PROFILE"] = str(self.stack.layout.profile)
        self._open_account()
        task_id = self._train(data)
        self._evaluate(task_id)
        self._publish(task_id, data)
        self._bill()

    def conclude(self) -> None:
        """The last line, or what is not as promised."""
        self.summary["seconds"] = round(time.monotonic() - self.started_s, 1)
        self._write("summary.json", self.summary)
        broken = [sentence for sentence, held in self._promises() if not held]
        if broken:
            raise click.ClickException(f"Not as promised: {'; '.join(broken)}. See {self.folder}.")
        self._say(
            f"\nDone in {self.summary['seconds']:.0f} s. Pictures, statement and every event lie in {self.folder}.\n"
            "Next: `make demo DATA=FOLDER` with your own labelled images, or `make up` and `saucer --help`."
        )

    def _promises(self) -> list[tuple[str, bool]]:
        summary = self.summary
        return [
            (f"test mAP@0.50 is below {WANTED_MAP_50}", not self.synthetic or summary["map_50"] >= WANTED_MAP_50),
            ("the replay through Triton differs from the evaluation", summary["parity_ok"]),
            ("money is still frozen", summary["frozen_micros"] == 0),
            ("the ledger does not sum to zero", summary["ledger_sum_micros"] == 0),
            ("the charges do not follow from the meters", summary["charges_follow_from_meters"]),
        ]

    # The path

    def _open_account(self) -> None:
        self._title("1  An account, with money")
        self._show("account", "create", "--name", "demonstration", "--reason", "the demonstration")
        (account,) = self._ask("account", "list")
        self.account_id = account["accountId"]
        self._show("account", "topup", self.account_id, TOP_UP, "--reference", "demonstration")
        token = self._ask("token", "create", "--role", "owner", "--account", self.account_id)["token"]
        profile = self.folder / "profile.json"
        profile.write_text(json.dumps({**self.stack.profile, "token": token, "account_id": self.account_id}, indent=2))
        profile.chmod(0o600)
        os.environ["SAUCER_PROFILE"] = str(profile)
        self._say("From here on as the account's owner.")

    def _train(self, data: Path | None) -> str:
        self.synthetic = data is None
        self._title("2  Labelled images")
        if data is None:
            data = self.folder / "scenes"
            self._say(f"Drawing {SCENES} synthetic scenes of cups and plates (no photographs)…")
            generate(data, images=SCENES, seed=SCENES_SEED, processes=os.cpu_count() or 1)
        self._show("dataset", "import", str(data))
        version = self._ask("dataset", "list")[0]
        form = [
            *("--name", "demonstration", "--dataset", version["datasetVersionId"], "--max-duration", MAX_DURATION),
            *("--scene", "cup-and-plate" if self.synthetic else "object-detection"),
        ]
        self._title("3  What it will cost, and the training")
        self._show("task", "quote", *form)
        self._show("task", "create", *form, "--watch")
        task = self._ask("task", "list")[0]
        self.summary["end_reason"] = task["endReason"].removeprefix("END_REASON_").lower()
        self._manifest_key = version["manifestKey"]
        return str(task["taskId"])

    def _evaluate(self, task_id: str) -> None:
        self._title("4  How good it is")
        self._show("run", "metrics", task_id, "--plot", self._picture("training_curve.png"), quiet=True)
        self._show("evaluation", "show", task_id, "--plot", self._picture("precision_recall.png"))
        self._show("evaluation", "bad-cases", task_id, "--sheet", self._picture("bad_cases.png"), quiet=True)
        evaluation = self._ask("evaluation", "show", task_id)
        self.summary["map_50"] = evaluation.get("map50", 0.0)
        model = self.folder / "model"
        self._show("model", "download", task_id, "--output", str(model), quiet=True)
        truth = self._test_truth()
        self._write("test_truth.json", truth)
        self._write("test_detections.json", _coco_detections(model / "detections_test.npz", truth))

    def _publish(self, task_id: str, data: Path | None) -> None:
        self._title("5  Online, in Triton")
        self._show("deploy", task_id, "--name", "demonstration", "--max-duration", "30m", "--wait")
        deployment_id = self._ask("deployment", "list")[0]["deploymentId"]
        images = self._new_images(data)
        self._show("predict", deployment_id, *map(str, images), "--output", str(self.folder / "predictions"))
        self._wait_until(lambda: self._charged_ms(deployment_id) >= SERVED_MS)
        self._show("deployment", "stop", deployment_id, "--wait", quiet=True)
        deployment = self._ask("deployment", "show", deployment_id)
        self.summary["parity_ok"] = deployment.get("parity", {}).get("ok", False)
        self.summary["parity_paired_share"] = deployment.get("parity", {}).get("pairedShare", 0.0)

    def _bill(self) -> None:
        self._title("6  The bill")
        self._wait_until(lambda: int(self._ask("account", "show", self.account_id)["frozenMicros"]) == 0)
        self._show("account", "statement")
        statements = self._ask("account", "statement")
        self._write("statement.json", statements)
        os.environ["SAUCER_PROFILE"] = str(self.stack.layout.profile)
        self._show("billing", "audit")
        audit = self._ask("billing", "audit")
        events = self._events()
        recomputed = recompute(events)
        charged = {entry["hold"]["holdId"]: int(entry["hold"]["chargeMicros"]) for entry in statements}
        account = self._ask("account", "show", self.account_id)
        self.summary |= {
            "frozen_micros": int(account["frozenMicros"]),
            "ledger_sum_micros": int(audit["ledgerSumMicros"]),
            "audit_clean": audit["clean"],
            "charged_micros": sum(charged.values()),
            "charges_follow_from_meters": recomputed == charged,
            "account_id": self.account_id,
        }
        self._say(
            f"Computed once more from the {len(events)} events alone: {sum(recomputed.values())} micros for "
            f"{len(recomputed)} starts; billed: {sum(charged.values())} micros."
        )

    # Parts

    def _events(self) -> list[dict[str, Any]]:
        lines = self._output("events", "tail", "--until-now", "--account", self.account_id, "--json").splitlines()
        events = [_binary_mode(json.loads(line)) for line in lines]
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        (self.folder / "events.jsonl").write_text(text)
        return events

    def _charged_ms(self, deployment_id: str) -> int:
        return int(self._ask("deployment", "show", deployment_id)["chargedMs"])

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Or until SETTLE_S are over: what did not come true shows in the summary."""
        end_s = time.monotonic() + SETTLE_S
        while not condition() and time.monotonic() < end_s:
            time.sleep(POLL_S)

    def _new_images(self, data: Path | None) -> list[Path]:
        """Images that the detector has not seen in training: new scenes, or some of the test split."""
        if data is None:
            generate(self.folder / "new", images=NEW_SCENES, seed=NEW_SEED)
            return sorted((self.folder / "new" / "images").iterdir())[:SHOWN_IMAGES]
        store = self.stack.layout.objects
        manifest = json.loads((store / self._manifest_key).read_text())
        test = [image for image in manifest["images"] if image["split"] == "test"]
        folder = self.folder / "new"
        folder.mkdir()
        chosen = []
        for image in random.Random(NEW_SEED).sample(test, min(SHOWN_IMAGES, len(test))):
            # Under the name that the user knows; in the store it is its hash.
            named = folder / f"{image['id']}-{Path(image['source_name']).name}"
            shutil.copy(store / "system" / self.account_id / "images" / image["file_name"], named)
            chosen.append(named)
        return chosen

    def _test_truth(self) -> dict[str, Any]:
        """The test split of the manifest, as a COCO file of its own."""
        manifest = json.loads((self.stack.layout.objects / self._manifest_key).read_text())
        images = [image for image in manifest["images"] if image["split"] == "test"]
        ids = {image["id"] for image in images}
        annotations = [label for label in manifest["annotations"] if label["image_id"] in ids]
        return {"images": images, "annotations": annotations, "categories": manifest["categories"]}

    # Commands

    def _show(self, *arguments: str, quiet: bool = False) -> None:
        """Runs a command as the user would, and says which; `quiet` shows only its remarks."""
        typed = ["'" + part + "'" if " " in part else part for part in arguments]
        self.console.print(Text(f"$ saucer {' '.join(typed)}", style="bold cyan"), soft_wrap=True)
        if quiet:
            self._output(*arguments)
        else:
            saucer.main(list(arguments), prog_name="saucer", standalone_mode=False)

    def _ask(self, *arguments: str) -> Any:
        """A command's JSON."""
        return json.loads(self._output(*arguments, "--json"))

    def _output(self, *arguments: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as captured:
            saucer.main(list(arguments), prog_name="saucer", standalone_mode=False)
        return captured.getvalue()

    def _title(self, text: str) -> None:
        self.console.print(Text(f"\n{text}", style="bold"))

    def _say(self, text: str) -> None:
        self.console.print(Text(text))

    def _picture(self, name: str) -> str:
        return str(self.folder / name)

    def _write(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def recompute(events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What each start must cost, by its hold's id, from the events alone (PRODUCT 6.3)."""
    holds: dict[str, dict[str, Any]] = {}
    counters: dict[str, int] = {}
    for event in events:
        body = event["data"]
        if event["headers"]["ce-type"] == "saucer.billing.v1.HoldGranted":
            holds[body["hold"]["holdId"]] = body["hold"]
        for owner in ("run", "deployment"):
            if "holdId" in body.get(owner, {}):
                hold_id = body[owner]["holdId"]
                counters[hold_id] = max(counters.get(hold_id, 0), int(body[owner].get("chargedMs", 0)))
    return {
        hold_id: int(hold["pricePerHourMicros"]) * hold["count"] * (counters.get(hold_id, 0) // 1000) // 3600
        for hold_id, hold in holds.items()
    }


def _binary_mode(event: Mapping[str, Any]) -> dict[str, Any]:
    """A CloudEvent as it stands in NATS: headers and body."""
    attributes = ("specversion", "id", "source", "type", "subject", "time")
    headers = {f"ce-{name}": event[name] for name in attributes}
    headers["ce-accountid"] = event["subject"].removeprefix(f"{event['type']}.").split(".")[0]
    headers["content-type"] = event["datacontenttype"]
    return {"headers": headers, "sequence": event["sequence"], "data": event["data"]}


def _coco_detections(stored: Path, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stored detections in COCO's result form."""
    detections = Detections.from_bytes(stored.read_bytes())
    categories = [category["id"] for category in sorted(truth["categories"], key=lambda category: category["id"])]
    rows = zip(detections.image_id, detections.box, detections.score, detections.label, strict=True)
    return [
        {
            "image_id": int(image_id),
            "category_id": categories[int(label)],
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for image_id, box, score, label in rows
    ]
