"""`saucer`: one command, its verbs by topic. Each topic is imported when it is used."""

from importlib import import_module
from pathlib import Path

import click

from saucer.cli.app import Root

# Of a topic with verbs the line ends with all of them, after a colon.
TOPICS = {
    "account": (
        "saucer.cli.accounts",
        "Accounts: create, list, show, topup, statement, month, adjust, refund, quotas, set-quotas, suspend, resume.",
    ),
    "region": ("saucer.cli.offers", "Regions: create, list."),
    "spec": ("saucer.cli.offers", "Compute shapes and their prices: create, list, price, withdraw, offer."),
    "group": ("saucer.cli.groups", "Prepaid capacity: create, update, show, list."),
    "budget": ("saucer.cli.groups", "Limits on what is spent: set, list."),
    "dataset": (
        "saucer.cli.datasets",
        "Data sets: import, show, list, images, export, reads, roots, map-root, unmap-root.",
    ),
    "draft": ("saucer.cli.drafts", "Labelling: create, show, list, add-class, label, version, delete."),
    "task": (
        "saucer.cli.tasks",
        "Tasks: create, quote, show, list, watch, stop, restart, delete, scenes, parameters, starting-points.",
    ),
    "run": ("saucer.cli.runs", "A task's training: list, metrics, logs."),
    "evaluate": ("saucer.cli.predicting", "Evaluate a model on other data."),
    "evaluation": (
        "saucer.cli.evaluations",
        "How good a model is: list, show, report, thresholds, bad-cases, suspects, compare, confusion, scores, images.",
    ),
    "worker": ("saucer.cli.workers", "Workers (administrator): list, drain, resume."),
    "queue": ("saucer.cli.workers", "What waits for workers (administrator): list."),
    "triton": (
        "saucer.cli.tritons",
        "Servers that carry deployments (administrator): list, register, drain, resume, unregister.",
    ),
    "model": ("saucer.cli.models", "Models: list, download, delete."),
    "deploy": ("saucer.cli.deployments", "Put a model online."),
    "deployment": (
        "saucer.cli.deployments",
        "What is online: list, show, stop, start, delete, traffic, instances, logs, events, versions, gate, records.",
    ),
    "update": ("saucer.cli.versions", "Another model in place, with no failed request."),
    "rollback": ("saucer.cli.versions", "A former version again."),
    "split": ("saucer.cli.versions", "A share of the traffic for a new version; promote or abandon it."),
    "stop": ("saucer.cli.deployments", "Take a deployment offline."),
    "predict": ("saucer.cli.detecting", "Find things on images."),
    "test": ("saucer.cli.testing", "Draw what a deployment finds on a picture; move the confidence."),
    "billing": ("saucer.cli.billing", "The ledger: audit, records."),
    "token": ("saucer.cli.tokens", "Tokens: create."),
    "calls": ("saucer.cli.calls", "Who did what (administrator): list."),
    "events": ("saucer.cli.events", "What happened, and what could not be consumed: tail, dead, retry."),
}


@click.group(cls=Root, topics=TOPICS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="saucer")
def main() -> None:
    """Saucer: from labelled images to a served detector and its bill."""


# The stack and the demonstration bring servers, drawing and numpy with them: they are imported when asked for.


@main.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path(".saucer/local"), show_default=True, help="Of its data."
)
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True, help="Training processes.")
def up(folder: Path, workers: int) -> None:
    """Start the whole stack on this machine, in the foreground; Ctrl-C stops it."""
    import_module("saucer.local.up").up(folder, Path.cwd(), workers)


@main.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of images and a COCO file; without it, synthetic scenes.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path(".saucer/demo"), show_default=True, help="Of its results."
)
def demo(data: Path | None, folder: Path) -> None:
    """See all of it: import, train, evaluate, publish, bill."""
    import_module("saucer.local.demo").demo(data, folder, Path.cwd())


if __name__ == "__main__":
    main()
