"""`make gpu-check`: trains on the GPU in the precision that its trial chooses, and shows six things.

1. The trial chooses mixed precision; if not, its figures say why, and it fails.
2. Images a second against plain mmengine, as `make bench` does on a processor.
3. The same resume test, bit for bit, with deterministic algorithms.
4. The exported graph computes what torch computes.
5. mmcv's compiled suppression of boxes and the stand-in keep the same ones. Without the compiled one it fails where
   MMCV_WITH_OPS=1 says that mmcv was built with it, as in deploy/Dockerfile.worker-cuda.
6. ONNX Runtime with CUDA, and with TensorRT, serves the boxes of the runtime of evaluations, and how many images a
   second at batch 1, 8 and 32; where it has one of them not, that is skipped, and it says why.

Without a GPU nothing is shown, and it says so and fails.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from saucer.worker import precision, stand_ins, trainer
from saucer.worker.job import Ready
from tests.bench import _training_speed
from tests.bench.harness import show
from tests.support.child import Child

SERVING = ("-s", "-rs", "tests/gpu/test_serving.py")
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "soak or not soak")
RESUME = ("tests/integration/worker/test_resuming.py",)
EXPORT = ("tests/integration/worker/test_training_child.py", "-k", "exported_graph")
BOXES, CLASSES, SIDE_PX = 2_000, 5, 320.0
IOU = 0.65


def same_boxes() -> bool | None:
    """Whether both suppressions keep the same of random boxes; None without the compiled one."""
    try:
        from mmcv.ops import batched_nms  # noqa: PLC0415 - missing where it was not compiled
    except ImportError:
        return None
    draw = torch.Generator().manual_seed(1)
    corner = torch.rand(BOXES, 2, generator=draw) * SIDE_PX
    boxes = torch.cat([corner, corner + torch.rand(BOXES, 2, generator=draw) * SIDE_PX / 4], dim=1)
    scores = torch.rand(BOXES, generator=draw)
    labels = torch.randint(CLASSES, (BOXES,), generator=draw)
    settings = {"type": "nms", "iou_threshold": IOU}
    _, compiled = batched_nms(boxes.cuda(), scores.cuda(), labels.cuda(), settings)
    _, own = stand_ins.batched_nms(boxes, scores, labels, settings)
    return bool(torch.equal(compiled.cpu(), own))


def mixed_precision(log: Path, console: Console) -> bool:
    """Whether the worker's child chose it."""
    child = Child(log)
    (ready,) = child.all(Ready)
    child.kill()
    trainer.load_engine()
    fp32_s, bf16_s = precision.trial(*trainer.trial_step())
    chosen = ready.precision == "bf16"
    console.print(
        f"precision: {ready.precision}; a step takes {1000 * fp32_s:.1f} ms in fp32, {1000 * bf16_s:.1f} ms in bf16, "
        f"which is taken below {precision.TRIAL_GAIN:.0%}{'' if chosen else ': FAILED'}"
    )
    return chosen


def main() -> int:
    """The number of checks that failed."""
    console = Console(highlight=False)
    if not torch.cuda.is_available():
        console.print("There is no GPU here: mixed precision, speed, resume, export and serving on one are unproven.")
        return 1
    console.print(f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    with tempfile.TemporaryDirectory(prefix="saucer-gpu-", ignore_cleanup_errors=True) as name:
        failed = int(not mixed_precision(Path(name) / "child.log", console))
        rows = asyncio.run(_training_speed.measure(Path(name) / "speed", console.print))
    show("training on the GPU", rows, console)
    failed += sum(not row.met for row in rows)
    for what, tests in (("resume", RESUME), ("export", EXPORT)):
        passed = subprocess.run([*PYTEST, *tests], check=False).returncode == 0
        console.print(f"{what}: {'equal' if passed else 'FAILED'}")
        failed += not passed
    served = subprocess.run([*PYTEST, *SERVING], check=False).returncode == 0
    console.print(f"serving: {'as above' if served else 'FAILED'}")
    failed += not served
    same = same_boxes()
    needed = os.environ.get("MMCV_WITH_OPS") == "1"
    missing = f"boxes: mmcv has no compiled operators here{': FAILED' if needed else ''}"
    console.print({None: missing, True: "boxes: equal", False: "boxes: FAILED"}[same])
    return failed + (same is False or (same is None and needed))


if __name__ == "__main__":
    sys.exit(main())
