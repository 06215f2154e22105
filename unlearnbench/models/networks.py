"""Judges and feature extractors, and what is done with any network."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from unlearnbench.errors import UsageError, spell_error
from unlearnbench.models.diffusion import to_float

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue in [0, 1]

# All blocks share one forward function; by default torch compiles at most 8 variants of a function.
MOST_COMPILED = 256

Model = TypeVar("Model", bound=nn.Module)


def frozen(model: Model, weights: Mapping[str, Tensor], device: torch.device) -> Model:
    """Return a network with these weights, on a device, in eval mode, without gradients."""
    model.load_state_dict(weights)
    return placed(model, device).eval().requires_grad_(False)


def placed(model: Model, device: torch.device) -> Model:
    """Return a network on a device, in the memory layout that its convolutions prefer there."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a network separately, on first use.

    Hooks and other changes of the network as a whole are not compiled, and a copy of the network is uncompiled.
    """
    import torch._dynamo  # takes a second

    torch._dynamo.config.recompile_limit = MOST_COMPILED
    for child in model.children():
        for block in child if isinstance(child, nn.ModuleList) else [child]:
            block.compile()


def is_plain(model: nn.Module) -> bool:
    """Say whether its modules and weights determine a network's output: no hooks, no replaced forward, no guide."""
    parts = list(model.modules())
    return getattr(model, "guide", None) is None and not any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts
    )


class Classifier(nn.Module):
    """A judge or a feature extractor: a body that returns features, and a linear head.

    Images are (B, C, H, W), uint8 or float in [-1, 1].
    """

    body: nn.Module
    head: nn.Linear

    def features(self, images: Tensor) -> Tensor:
        """Return (B, D) features."""
        x: Tensor = self.body(to_float(images) if images.dtype == torch.uint8 else images)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, K) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


class SmallCnn(Classifier):
    """Three convolutions and 64 features for images of 8x8 pixels.

    Normalised by groups within an image: with batch statistics of digits, a judge is nearly certain about noise.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_block(channels, 32),
            *_conv_block(32, 64),
            nn.MaxPool2d(2),
            *_conv_block(64, 64),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, num_classes)


def _conv_block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]


class SmallVgg(Classifier):
    """Six convolutions with pooling between, no shortcut, 128 features."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            blocks += [*_conv_block(inputs, outputs), *_conv_block(outputs, outputs), nn.MaxPool2d(2, ceil_mode=True)]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], num_classes)


class Vgg16(Classifier):
    """VGG-16 with batch normalisation (Simonyan and Zisserman 2015), averaged to 512 features; no hidden layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        from torchvision.models import vgg16_bn

        layers = vgg16_bn().features
        layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True  # so that images of fewer than 32 pixels work
        self.body = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(512, num_classes)


class _Residual(nn.Module):
    """Two convolutions, the first with stride 2, and a strided 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)
        second = [nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs)]
        self.residual = nn.Sequential(*_conv_block(inputs, outputs, stride=2), *second)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.residual(x))


class SmallResNet(Classifier):
    """Three residual blocks and 128 features for images of 16 pixels and more; 0.4 M weights."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_block(channels, 32),
            _Residual(32, 64),
            _Residual(64, 128),
            _Residual(128, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, num_classes)


class ResNet34(Classifier):
    """ResNet-34 (He et al. 2016), 512 features.

    Args:
        channels: of the images.
        num_classes: K.
        side: images are resized to this many pixels (bilinear), for ImageNet's stem; None keeps their size and uses a
            3x3 stem without pooling.
    """

    def __init__(self, channels: int, num_classes: int, side: int | None = None) -> None:
        super().__init__()
        from torchvision.models import resnet34

        self.side = side
        self.body = resnet34()
        self.body.fc = nn.Identity()
        if side is None:
            self.body.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.body.maxpool = nn.Identity()
        self.head = nn.Linear(512, num_classes)
        nn.init.xavier_uniform_(self.head.weight)

    def features(self, images: Tensor) -> Tensor:
        """Return (B, 512) features."""
        x = to_float(images) if images.dtype == torch.uint8 else images
        if self.side is not None:
            x = functional.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
            x = x.expand(-1, 3, -1, -1)
        return super().features(x)

    def start_from_imagenet(self) -> None:
        """Load torchvision's ImageNet weights into the body.

        Raises:
            UsageError: they are missing and cannot be downloaded.
        """
        from torchvision.models import ResNet34_Weights

        try:
            weights = ResNet34_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError, ValueError) as error:
            file = ResNet34_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
            raise UsageError(
                f"the judge starts from ResNet-34's ImageNet weights, which cannot be downloaded "
                f"({spell_error(error)}): give --judge resnet34-scratch to train one from random weights, or put "
                f"the file {file} into {torch.hub.get_dir()}/checkpoints"
            ) from error
        self.body.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})


class _CifarBlock(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), with x' = x or, where the width doubles, every second pixel of x.

    Missing channels of x' are zeros, half of them before and half after the existing ones.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.missing = (outputs - inputs) // 2  # channels on each side
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if self.missing else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = x
        if self.missing:
            shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing, self.missing))
        return functional.relu(shortcut + residual)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*[_CifarBlock(before, after) for before, after in pairwise([inputs, *[outputs] * blocks])])


class CifarResNet(Classifier):
    """He et al.'s ResNet for CIFAR (2016, section 4.2): 6n + 2 layers, 64 features; grey images become RGB.

    Args:
        blocks: n, of each of the three stages of 16, 32 and 64 channels: 3 for ResNet-20, 9 for ResNet-56.
        num_classes: K.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        for name, statistic in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(statistic).view(1, 3, 1, 1), persistent=False)
        parts: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(3, 16, 3, padding=1, bias=False)),
            ("bn1", nn.BatchNorm2d(16)),
            ("relu", nn.ReLU()),
            ("layer1", _stage(16, 16, blocks)),
            ("layer2", _stage(16, 32, blocks)),
            ("layer3", _stage(32, 64, blocks)),
            ("average", nn.AdaptiveAvgPool2d(1)),
            ("flat", nn.Flatten()),
        ]
        self.body = nn.Sequential(OrderedDict(parts))
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def features(self, images: Tensor) -> Tensor:
        """Return (B, 64) features."""
        x = to_float(images) if images.dtype == torch.uint8 else images
        return super().features(((x + 1) / 2 - self.mean) / self.std)


CLASSIFIERS: Mapping[str, Callable[[int, int], Classifier]] = {
    "small_cnn": SmallCnn,
    "small_resnet": SmallResNet,
    "small_vgg": SmallVgg,
    "vgg16": Vgg16,
    "resnet34": ResNet34,
    "resnet34_224": lambda channels, num_classes: ResNet34(channels, num_classes, side=224),
    "cifar_resnet20": lambda channels, num_classes: CifarResNet(3, num_classes),
    "cifar_resnet56": lambda channels, num_classes: CifarResNet(9, num_classes),
}
