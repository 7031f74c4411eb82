"""The served model: image bytes in, boxes out.

numpy, OpenCV and a runtime (runtime.py) only, nothing of Saucer, and relative imports inside: the worker predicts with
this package, and publishing copies the folder as it is into Triton's model repository. One piece of code makes the
detections that are evaluated and the detections that are served.

A model folder holds `model.onnx` (one graph: normalisation, network, box decoding) and `model.json` (spec.py).
"""
