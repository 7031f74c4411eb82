"""A TrainJob as mmengine's configuration: plain values only, so that it can be written down for the user."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import ConfigDict
from mmengine.device import get_device

from saucer.worker.backbone import OUT_CHANNELS, PIXEL_MEAN, PIXEL_STD
from saucer.worker.hooks import MONITORS
from saucer.worker.job import StartingPoint, TrainJob
from saucer.worker.splits import Split, Splits

SCORE_FLOOR = 0.01
NMS_IOU = 0.65
MAX_DETECTIONS = 300
LITE0_NECK_CHANNELS = 96
"""RTMDet-tiny's."""
WEIGHT_DECAY = 0.05
BACKBONE_LR_SHARE = 0.5
"""Pretrained features move less than new layers."""
FROZEN_BLOCKS = 3
FINAL_LR_SHARE = 0.05
MAX_GRADIENT_NORM = 35.0
AVERAGE_MOMENTUM = 0.0002
AVERAGE_GAMMA = 2000
"""RTMDet's own: the average of a run of some hundred iterations follows the weights closely, that of a long one
smooths them."""
LOG_ITERATIONS = 5
MAX_PRE_NMS = 1000


@dataclass(frozen=True)
class Size:
    """Of an RTMDet with its own backbone (configs/rtmdet of MMDetection)."""

    deepen: float
    widen: float
    neck_blocks: int
    exponential: bool = False

    @property
    def channels(self) -> list[int]:
        """Of the backbone at strides 8, 16 and 32; the neck has as many as the first."""
        return [round(self.widen * channels) for channels in (256, 512, 1024)]


SIZES: Mapping[StartingPoint, Size] = {
    StartingPoint.SCRATCH: Size(0.167, 0.375, 1),
    StartingPoint.RTMDET_TINY_COCO: Size(0.167, 0.375, 1),
    StartingPoint.RTMDET_S_COCO: Size(0.33, 0.5, 1),
    StartingPoint.RTMDET_M_COCO: Size(0.67, 0.75, 2),
    StartingPoint.RTMDET_L_COCO: Size(1.0, 1.0, 3, exponential=True),
}


def epoch_iterations(job: TrainJob, splits: Splits) -> int:
    """Iterations of one pass over the training split."""
    return math.ceil(len(splits.train.images) / (job.batch_share * job.processes))


def build(job: TrainJob, splits: Splits, precision: str) -> dict[str, Any]:
    """The keyword arguments of mmengine's Runner, less hooks and loops that need live objects (trainer.py)."""
    iterations = job.epochs * epoch_iterations(job, splits)
    config = {
        "work_dir": job.workdir,
        "default_scope": "mmdet",
        "model": model(job),
        "train_dataloader": _class_loader(job, splits.train) if job.classifies else _train_loader(job, splits),
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": iterations,
            "val_interval": iterations,
            # True stands for leaving it: hooks.ResumeHook does it.
            "fast_forward_on_resume": True,
        },
        "optim_wrapper": _optimizer(job, precision),
        "param_scheduler": _schedule(job, iterations),
        "custom_hooks": [
            {
                "type": "EMAHook",
                "ema_type": "ExpMomentumEMA",
                "momentum": AVERAGE_MOMENTUM,
                "gamma": AVERAGE_GAMMA,
                "update_buffers": True,
            }
        ],
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": LOG_ITERATIONS, "log_metric_by_epoch": False}},
        "log_processor": {"by_epoch": False, "window_size": LOG_ITERATIONS},
        "env_cfg": {"mp_cfg": {"opencv_num_threads": 1}},
        "randomness": {"seed": job.seed, "diff_rank_seed": True},
    }
    if splits.validation is not None:
        config |= {
            "val_dataloader": _class_loader(job, splits.validation, trains=False)
            if job.classifies
            else _validation_loader(job, splits),
            "val_evaluator": {"type": "TopOneMetric"}
            if job.classifies
            else {"type": "ValidationMetric", "annotations": str(splits.validation.annotations)},
            "val_cfg": {"type": "StoppableValLoop"},
        }
    if job.processes > 1:
        config["launcher"] = "pytorch"
        # device_ids: the model is on its process's device already, and a CPU has none.
        config["cfg"] = {"model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None}}
    return config


def model(job: TrainJob) -> ConfigDict:
    """The detector: RTMDet's neck and head over Lite0 or over a backbone of its own; or the classifier."""
    if job.classifies:
        return _classifier(job)
    norm = {"type": "BN"}
    activation = {"type": "SiLU", "inplace": True}
    lite0 = job.starting_point is StartingPoint.IMAGENET_LITE0
    size = SIZES[StartingPoint.SCRATCH if lite0 else job.starting_point]
    neck_channels = LITE0_NECK_CHANNELS if lite0 else size.channels[0]
    if lite0:
        backbone: dict[str, Any] = {"type": "EfficientNetLite0", "frozen_blocks": FROZEN_BLOCKS}
        mean, std, channels = [PIXEL_MEAN] * 3, [PIXEL_STD] * 3, list(OUT_CHANNELS)
    else:
        backbone = {
            "type": "CSPNeXt",
            "arch": "P5",
            "expand_ratio": 0.5,
            "deepen_factor": size.deepen,
            "widen_factor": size.widen,
            "channel_attention": True,
            "norm_cfg": norm,
            "act_cfg": activation,
        }
        mean, std, channels = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395], size.channels
    detector = {
        "type": "RTMDet",
        # Of several processes: one set of statistics over the whole batch, which torch has for GPUs alone.
        "use_syncbn": get_device() != "cpu",
        "data_preprocessor": {"type": "DetDataPreprocessor", "mean": mean, "std": std, "bgr_to_rgb": lite0},
        "backbone": backbone,
        "neck": {
            "type": "CSPNeXtPAFPN",
            "in_channels": channels,
            "out_channels": neck_channels,
            "num_csp_blocks": size.neck_blocks,
            "expand_ratio": 0.5,
            "norm_cfg": norm,
            "act_cfg": activation,
        },
        "bbox_head": {
            "type": "RTMDetSepBNHead",
            "num_classes": len(job.classes),
            "in_channels": neck_channels,
            "feat_channels": neck_channels,
            "stacked_convs": 2,
            "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8, 16, 32]},
            "bbox_coder": {"type": "DistancePointBBoxCoder"},
            "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
            "with_objectness": False,
            "exp_on_reg": size.exponential,
            "share_conv": True,
            "pred_kernel_size": 1,
            "norm_cfg": norm,
            "act_cfg": activation,
        },
        "train_cfg": {
            "assigner": {"type": "DynamicSoftLabelAssigner", "topk": 13},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": MAX_PRE_NMS,
            "min_bbox_size": 0,
            "score_thr": SCORE_FLOOR,
            "nms": {"type": "nms", "iou_threshold": NMS_IOU},
            "max_per_img": MAX_DETECTIONS,
        },
    }
    return ConfigDict(detector)  # heads read their settings as attributes


def _classifier(job: TrainJob) -> ConfigDict:
    """One layer over Lite0, from ImageNet's weights or from random ones."""
    pretrained = job.starting_point is StartingPoint.IMAGENET_LITE0
    backbone = {
        "type": "EfficientNetLite0",
        "pretrained": pretrained,
        "norm_eval": pretrained,
        "frozen_blocks": FROZEN_BLOCKS if pretrained else 0,
    }
    return ConfigDict({"type": "Classifier", "backbone": backbone, "classes": len(job.classes)})


def early_stopping(job: TrainJob, expected_accuracy: float) -> dict[str, Any]:
    """mmengine's EarlyStoppingHook, which compares by "greater", as one that stops at the value too and never for lack
    of improvement."""
    return {
        "type": "EarlyStoppingHook",
        "monitor": MONITORS[job.classifies],
        "rule": "greater",
        "min_delta": 0,
        "patience": 10**6,
        "stopping_threshold": math.nextafter(expected_accuracy, 0),
    }


def _train_loader(job: TrainJob, splits: Splits) -> dict[str, Any]:
    pipeline = [
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "LoadLetterboxed", "size": job.input_size},
        {"type": "YOLOXHSVRandomAug"},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PackDetInputs"},
    ]
    return {
        "batch_size": job.batch_share,
        "num_workers": 0,
        "sampler": {"type": "InfiniteSampler", "shuffle": True},
        "dataset": {
            "type": "CocoDataset",
            "ann_file": str(splits.train.annotations),
            "data_prefix": {"img": job.images},
            "metainfo": {"classes": list(job.classes)},
            "filter_cfg": {"filter_empty_gt": False},
            "pipeline": pipeline,
        },
    }


def _validation_loader(job: TrainJob, splits: Splits) -> dict[str, Any]:
    assert splits.validation is not None
    meta_keys = ["img_id", "img_path", "ori_shape", "img_shape", "scale_factor"]
    return {
        "batch_size": job.batch_share,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {
            "type": "CocoDataset",
            "ann_file": str(splits.validation.annotations),
            "data_prefix": {"img": job.images},
            "metainfo": {"classes": list(job.classes)},
            "test_mode": True,
            "pipeline": [
                {"type": "LoadLetterboxed", "size": job.input_size},
                {"type": "PackDetInputs", "meta_keys": meta_keys},
            ],
        },
    }


def _class_loader(job: TrainJob, split: Split, *, trains: bool = True) -> dict[str, Any]:
    sampler = {"type": "InfiniteSampler", "shuffle": True} if trains else {"type": "DefaultSampler", "shuffle": False}
    return {
        "batch_size": job.batch_share,
        "num_workers": 0,
        "sampler": sampler,
        "dataset": {
            "type": "LabelledImages",
            "annotations": str(split.annotations),
            "images": job.images,
            "size": job.input_size,
            "trains": trains,
        },
    }


def _optimizer(job: TrainJob, precision: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {"norm_decay_mult": 0, "bias_decay_mult": 0, "bypass_duplicate": True}
    if job.starting_point is not StartingPoint.SCRATCH:
        parameters["custom_keys"] = {"backbone": {"lr_mult": BACKBONE_LR_SHARE}}
    return {
        "type": "AutocastOptimWrapper" if precision == "bf16" else "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": job.lr, "weight_decay": WEIGHT_DECAY},
        "paramwise_cfg": parameters,
        "clip_grad": {"max_norm": MAX_GRADIENT_NORM},
    }


def _schedule(job: TrainJob, iterations: int) -> list[dict[str, Any]]:
    """A linear rise over the warmup, then level, and a cosine's fall over the second half, as RTMDet's."""
    warmup = min(job.warmup_iterations, iterations)
    begin = max(warmup, iterations // 2)
    schedule: list[dict[str, Any]] = []
    if warmup:
        schedule.append({"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warmup})
    if begin < iterations:
        schedule.append(
            {
                "type": "CosineAnnealingLR",
                "eta_min_ratio": FINAL_LR_SHARE,
                "begin": begin,
                "end": iterations,
                "T_max": iterations - begin,
                "by_epoch": False,
            }
        )
    return schedule
