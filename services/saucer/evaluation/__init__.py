"""Evaluation: how good a model is, at any threshold, from detections that were stored once.

Owns: evaluations and counts of image reads (database `evaluation`); their matched detections in the object store.
Serves: saucer.evaluation.v1.EvaluationService, saucer.lib.v1.DeadEventService, saucer.lib.v1.CallService.
Calls: nobody but the object store.
Publishes: EvaluationEnded.
Consumes: RunEnded.
"""
