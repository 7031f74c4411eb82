"""What is wrong with images, in words."""

from collections import Counter

from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.scores import threshold_text

BACKGROUND = "background"


def describe_case(found: evaluation_pb2.Evaluation, case: evaluation_pb2.BadCase) -> str:
    """What is wrong with a bad case of the evaluation: `3 x miss of cup, false positive of plate`, each kind and class
    once, in the order of the case. Of a classification a miss is an answer that is not sure."""
    unsure = [fault for fault in case.faults if fault.kind == evaluation_pb2.FAULT_KIND_MISS]
    if found.classification and unsure:
        return ", ".join(f"unsure of {fault.class_name}" for fault in unsure)
    said = Counter(_describe(fault) for fault in case.faults)
    return ", ".join(f"{count} x {words}" if count > 1 else words for words, count in said.items())


def describe_filter(found: evaluation_pb2.Evaluation, asked: evaluation_pb2.ListBadCasesRequest) -> str:
    """Which bad cases of the evaluation are asked for: `miss or confused of cup`; nothing where all are."""
    kinds = " or ".join(
        "unsure" if found.classification and kind == evaluation_pb2.FAULT_KIND_MISS else _kind(kind)
        for kind in asked.kinds
    )
    of_class = f" of {asked.class_name}" if asked.class_name else ""
    scored = ""
    if asked.HasField("min_score") or asked.HasField("max_score"):
        highest = asked.max_score if asked.HasField("max_score") else 1.0
        scored = f" with a score from {threshold_text(asked.min_score)} to {threshold_text(highest)}"
    if not kinds and not of_class and not scored:
        return ""
    return f"{kinds or 'any fault'}{of_class}{scored}"


def _describe(fault: evaluation_pb2.Fault) -> str:
    kind = _kind(fault.kind)
    return f"{kind} of {fault.class_name}" if fault.class_name else kind


def _kind(kind: evaluation_pb2.FaultKind.ValueType) -> str:
    return evaluation_pb2.FaultKind.Name(kind).removeprefix("FAULT_KIND_").lower().replace("_", " ")
