"""A classifier on mmengine: EfficientNet-Lite0's last features, averaged, and one layer; its images, and its metric."""

import json
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from saucer.worker import ranks
from saucer.worker.backbone import OUT_CHANNELS, PIXEL_MEAN, PIXEL_STD
from saucer.worker.hooks import TOP_1
from saucer.worker.transforms import LoadLetterboxed

DROPOUT = 0.2
UNLABELLED = -1


@MODELS.register_module()
class Classifier(BaseModel):  # type: ignore[misc]  # mmengine ships no types
    """Images uint8 [n, 3, size, size] BGR, normalised by the preprocessor, to logits [n, classes]."""

    def __init__(self, backbone: dict[str, Any], classes: int) -> None:
        super().__init__(
            data_preprocessor={
                "type": "mmengine.ImgDataPreprocessor",
                "mean": [PIXEL_MEAN] * 3,
                "std": [PIXEL_STD] * 3,
                "bgr_to_rgb": True,
            }
        )
        self.backbone = MODELS.build(backbone)
        self.dropout = nn.Dropout(DROPOUT)
        self.layer = nn.Linear(OUT_CHANNELS[-1], classes)

    def logits(self, pixels: Tensor) -> Tensor:
        """Of normalised images [n, 3, size, size]."""
        features: Tensor = self.backbone(pixels)[-1].mean(dim=(2, 3))
        logits: Tensor = self.layer(self.dropout(features))
        return logits

    def forward(self, inputs: Tensor, data_samples: list[int] | None = None, mode: str = "tensor") -> Any:
        """As mmengine asks: a loss, pairs of label and answer, or logits."""
        logits = self.logits(torch.stack(inputs) if isinstance(inputs, list) else inputs)
        if mode == "tensor":
            return logits
        labels = torch.tensor(data_samples, device=logits.device)
        if mode == "loss":
            # The sum, so that a batch without one label is no division by zero.
            count = max(1, int((labels != UNLABELLED).sum()))
            loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="sum")
            return {"loss_cls": loss / count}
        return list(zip(labels.tolist(), logits.argmax(dim=1).tolist(), strict=True))


@DATASETS.register_module()
class LabelledImages(Dataset[dict[str, Any]]):
    """Images of a rewritten split (splits.py), loaded as the served model loads them; `trains`: flipped, and their
    colours changed, by chance. An image without label has UNLABELLED."""

    def __init__(self, annotations: str, images: str, size: int, *, trains: bool) -> None:
        content = json.loads(Path(annotations).read_text(encoding="utf-8"))
        label_of = {box["image_id"]: box["category_id"] for box in content["annotations"]}
        self._entries = [
            (str(Path(images) / image["file_name"]), label_of.get(image["id"], UNLABELLED))
            for image in content["images"]
        ]
        self._loader = LoadLetterboxed(size)
        self._colours = TRANSFORMS.build({"type": "YOLOXHSVRandomAug"}) if trains else None

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self._entries[index]
        loaded = self._loader.transform({"img_path": path})
        if self._colours is not None:
            loaded = self._colours.transform(loaded)
        pixels = torch.from_numpy(loaded["img"]).permute(2, 0, 1)
        if self._colours is not None and torch.rand(()) < 0.5:
            pixels = pixels.flip(2)
        return {"inputs": pixels.contiguous(), "data_samples": label}


@METRICS.register_module()
class TopOneMetric(BaseMetric):  # type: ignore[misc]  # mmengine ships no types
    """The share of labelled images whose best answer is right; 0 without one."""

    def __init__(self) -> None:
        super().__init__(collect_device=ranks.COLLECT)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        results = [pair for pair in results if pair[0] != UNLABELLED]
        return {TOP_1: sum(label == answer for label, answer in results) / len(results) if results else 0.0}


class RawClassifier(nn.Module):
    """A classifier in the shape of a detector: one box, the whole input, with a score for each class that add up to 1.

    uint8 [n, size, size, 3] BGR → boxes [n, 1, 4] xyxy in input pixels, scores [n, 1, classes]. So all that serves and
    predicts does both; serving's selection gives the best answers, each with the box of its image.
    """

    box: Tensor

    def __init__(self, classifier: Classifier, size: int) -> None:
        super().__init__()
        self.classifier = classifier.cpu().eval()
        self.register_buffer("box", torch.tensor([[[0.0, 0.0, size, size]]]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = torch.flip(image.permute(0, 3, 1, 2).float(), dims=[1])
        scores = self.classifier.logits((pixels - PIXEL_MEAN) / PIXEL_STD).softmax(dim=1)[:, None, :]
        # Of as many images as came: a constant alone would have the batch size of the export.
        return self.box + 0.0 * scores[:, :, :1], scores
