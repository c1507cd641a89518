"""Networks for the tests of coupled channels, with channels that are removed at random."""

import timm
import torch
import torchvision
from torch import nn

import hydraprune as hp
from hydraprune.masks.coupling import coupled_channels


def built(kind):
    return hp.Net(kind=kind).build(10, in_channels=3, image_size=32)


NETS = {
    **{kind: (lambda kind=kind: built(kind)) for kind in ("vgg16_bn", "resnet18", "wrn_28_4", "vgg4")},
    **{kind: (lambda kind=kind: built(kind)) for kind in ("cnn_digits", "cnn_small", "cnn_large", "cnn7_bn")},
    "resnet50": lambda: torchvision.models.resnet50(weights=None, num_classes=10),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10),
    "timm:regnet": lambda: timm.create_model("regnety_002", num_classes=10),
    "mobilenetv2": lambda: torchvision.models.mobilenet_v2(weights=None, num_classes=10),
    "timm:mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    "timm:convnext": lambda: timm.create_model("convnext_atto", num_classes=10),
    "timm:vit": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=3),
    "timm:densenet": lambda: timm.create_model("densenet121", num_classes=10, block_config=(2, 3, 2, 2)),
}


def lively(model, seed=0):
    """With random norms and biases, and logits that are not 0, in evaluation mode."""
    torch.manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean") or (name.endswith("bias") and tensor.is_floating_point()):
            tensor.normal_(0, 0.3)
        elif tensor.dim() == 1 and name.endswith("weight"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and not tensor.any():
            tensor.normal_(0, 0.1)
    return model.eval()


@torch.no_grad()
def without(model, share, image, seed=0):
    """Nobody in `model` reads `share` of the channels of each removable set any more; set -> (channels left, all)."""
    coupling, rng = coupled_channels(model, image), torch.Generator().manual_seed(seed)
    keep, left = torch.ones(coupling.size, dtype=torch.bool), {}
    for each in coupling.removable():
        stays = torch.rand(len(each.channels), generator=rng) > share
        stays[-1] = True
        keep[each.channels.start : each.channels.stop] = stays
        left[each.name] = int(stays.sum()), len(stays)
    for name, reader in coupling.readers.items():
        gone = ~coupling.kept(name, keep)[reader.inputs]
        model.get_parameter(name)[(slice(None),) * reader.inputs + (gone,)] = 0
    return left


def apart(one, other, x):
    """The largest difference of logits, over the largest logit."""
    with torch.no_grad():
        first, second = one(x), other(x)
    assert first.abs().max() > 0
    return float((first - second).abs().max() / first.abs().max())


class Residual(nn.Module):
    """Images (1, 6, 6): a stem, two blocks, the second with a convolution beside it."""

    def __init__(self, stem=4, inner=5, outer=6, deep=7):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)
        self.inner, self.inner_norm = nn.Conv2d(stem, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.back = nn.Conv2d(inner, stem, 3, padding=1)
        self.deep, self.deep_norm = nn.Conv2d(stem, deep, 3, padding=1), nn.BatchNorm2d(deep)
        self.outer, self.beside = nn.Conv2d(deep, outer, 1), nn.Conv2d(stem, outer, 1)
        self.head = nn.Linear(outer * 9, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.inner_norm(self.inner(x)).relu())
        x = self.outer(self.deep_norm(self.deep(x)).relu()) + self.beside(x)
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))
