"""What is wrong with an image, in words."""

from collections import Counter

from saucer.evaluation.v1 import evaluation_pb2

BACKGROUND = "background"


def describe_case(found: evaluation_pb2.Evaluation, case: evaluation_pb2.BadCase) -> str:
    """What is wrong with a bad case of the evaluation: `3 x miss of cup, false positive of plate`, each kind and class
    once, in the order of the case. Of a classification a miss is an answer that is not sure."""
    unsure = [fault for fault in case.faults if fault.kind == evaluation_pb2.FAULT_KIND_MISS]
    if found.classification and unsure:
        return ", ".join(f"unsure of {fault.class_name}" for fault in unsure)
    said = Counter(_describe(fault) for fault in case.faults)
    return ", ".join(f"{count} x {words}" if count > 1 else words for words, count in said.items())


def _describe(fault: evaluation_pb2.Fault) -> str:
    kind = evaluation_pb2.FaultKind.Name(fault.kind).removeprefix("FAULT_KIND_").lower().replace("_", " ")
    return f"{kind} of {fault.class_name}" if fault.class_name else kind
