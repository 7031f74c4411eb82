"""A scoring's child process as the service holds it. See scoring_child.py for what it is told and what it says.

Files pass between the two as descriptors of temporary files without a name, so that no process that is killed leaves
one behind, and what scoring takes of memory is the child's. The service has one result at a time in memory, to store
it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import IO

from saucer.evaluation.domain import CannotScoreError, Summary
from saucer.evaluation.scoring_child import ScoringJob
from saucer.lib.confined import ChildDiedError, ChildTimedOutError, confined_child, last_of
from saucer.lib.confinement import ChildLimits

# Of the child's address space, of which Python and its libraries take a tenth: what needs more is FAILED.
# 50,000 images with 2.5 million detections have 1.8 GB resident at most, 5,000 images with 151,000 have 0.2.
MEMORY_BYTES = 4 * 1024**3
# Of one file of results, the largest of which has a tenth of the memory: a crash.
FILE_BYTES = 4 * 1024**3
# Then the child is killed: FAILED. 5,000 images with 151,000 detections take two seconds.
TIME_LIMIT_S = 15 * 60.0
# Of what the child says; figures of 1,000 classes have about half a MB.
MAX_ANSWER_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class ScoringFiles:
    """Open files: three with what is scored, three for what comes of it."""

    manifest: IO[bytes]
    test: IO[bytes]
    validation: IO[bytes]
    scored: IO[bytes]
    scored_validation: IO[bytes]
    truth: IO[bytes]

    def descriptors(self) -> dict[str, int]:
        """By the name of the field."""
        return {field.name: getattr(self, field.name).fileno() for field in fields(self)}


async def run_child(
    files: ScoringFiles, classes: tuple[str, ...], limits: ChildLimits, label_names: Mapping[str, str]
) -> Summary:
    """Scores; the child never outlives this call.

    Raises:
        CannotScoreError: the child refused, or took too long. ChildDiedError.
    """
    descriptors = files.descriptors()
    job = ScoringJob(**descriptors, classes=classes, label_names=label_names)
    try:
        async with confined_child(
            "saucer.evaluation.scoring_child", asdict(job), limits, descriptors=descriptors.values()
        ) as stdout:
            answer = await last_of(stdout, MAX_ANSWER_BYTES)
    except ChildTimedOutError as error:
        raise CannotScoreError(f"The scoring took longer than {limits.time_limit_s:.0f} s.") from error
    return _summary(answer)


def _summary(answer: bytes) -> Summary:
    try:
        ((kind, value),) = json.loads(answer).items()
        if kind == "scored":
            return Summary.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChildDiedError("the scoring process said what makes no sense") from error
    raise CannotScoreError(str(value))
