"""A finished run applied to new images.

Every kind of run ends in the same two steps: a backbone's features, then a head on them. For a
fine-tuned network the head is its last layer.

`model` reads what the run kept, `prediction` takes images through it.
"""

from ecgfeat.inference.prediction import FailedImage, InferenceResult, predict

__all__ = ["FailedImage", "InferenceResult", "predict"]
