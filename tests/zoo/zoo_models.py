"""Strangers' models, small: torchvision's and timm's own classes, narrow and shallow, with weights that matter.

A row is a name and a function that builds the network for images of a given size. Nothing here knows of spikezip's
road; the networks are what the libraries' authors wrote, with fewer channels and blocks so that each takes seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikezip.models.torchvision_ops import import_timm, import_torchvision

CLASSES = 5


@dataclass(frozen=True)
class ZooModel:
    """One network of the zoo.

    Attributes:
        name: ``library:family``, and what was made small.
        build: makes it, with random weights.
        size: height and width of its images.
        fast: whether ``make test`` runs it too.
        frames: of a film; none for images.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int = 32
    fast: bool = False
    frames: tuple[int, ...] = ()

    def example(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Random images ``[batch, 3, size, size]``, or films ``[batch, 3, frames, size, size]``."""
        shape = (batch, 3, *self.frames, self.size, self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def network(self) -> nn.Module:
        """The model in evaluation mode, its weights, BatchNorm statistics and affine maps random but alive."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build()
            return awaken(model, self.example(4, seed=1))


def awaken(model: nn.Module, images: Tensor) -> nn.Module:
    """Give a fresh model weights under which every layer matters, in place; returns it in evaluation mode.

    Libraries initialise some parameters to zero or nearly (heads, the last BatchNorm of a block, layer scales,
    relative positions): these are drawn anew. BatchNorm statistics are those of random images, then moved at random,
    so that folding a wrong one would show.
    """
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        if parameter.is_floating_point() and float(parameter.detach().abs().max()) < 1e-3:
            parameter.data.normal_(0.0, 0.2, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.weight.data.mul_(module.weight[0].numel() ** -0.5 / module.weight.detach().std().clamp(min=1e-6))
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.affine:
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0.0, 0.4, generator=generator)
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        with torch.no_grad():
            model(images)
    for norm in norms:
        norm.eval()
        if norm.running_mean is None or norm.running_var is None:
            continue
        drift = torch.randn(norm.running_mean.shape, generator=generator)
        norm.running_mean.add_(0.2 * norm.running_var.sqrt() * drift)
        norm.running_var.mul_(torch.empty(norm.running_var.shape).uniform_(0.7, 1.6, generator=generator))
        norm.running_var.clamp_(min=1e-2)
    return model


def _torchvision(submodule: str) -> Any:
    return import_torchvision(f"models.{submodule}")


def _tv_resnet(block: str = "BasicBlock", layers: tuple[int, ...] = (1, 1, 1, 1), **choices: Any) -> nn.Module:
    module = _torchvision("resnet")
    return module.ResNet(getattr(module, block), list(layers), num_classes=CLASSES, **choices)


def _tv_alexnet() -> nn.Module:
    model = _torchvision("alexnet").AlexNet(num_classes=CLASSES)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[1], model.classifier[4] = nn.Linear(1024, 64), nn.Linear(64, 32)
    model.classifier[6] = nn.Linear(32, CLASSES)
    return model


def _tv_vgg(batch_norm: bool) -> nn.Module:
    module = _torchvision("vgg")
    features = module.make_layers([8, "M", 16, "M", 24, 24, "M", 32, "M", 32, "M"], batch_norm=batch_norm)
    model = module.VGG(features, num_classes=CLASSES)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(
        nn.Linear(128, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 48), nn.ReLU(True), nn.Dropout(),
        nn.Linear(48, CLASSES),
    )  # fmt: skip
    return model


def _tv_densenet() -> nn.Module:
    return _torchvision("densenet").DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)


def _tv_squeezenet(version: str) -> nn.Module:
    return _torchvision("squeezenet").SqueezeNet(version, num_classes=CLASSES)


def _tv_mobilenet_v2() -> nn.Module:
    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 1]]
    return _torchvision("mobilenetv2").MobileNetV2(CLASSES, 0.5, inverted_residual_setting=settings)


def _tv_mobilenet_v3() -> nn.Module:
    module = _torchvision("mobilenetv3")
    row = partial(module.InvertedResidualConfig, width_mult=1.0)
    settings = [
        row(16, 3, 16, 16, True, "RE", 2, 1), row(16, 3, 48, 16, False, "RE", 2, 1),
        row(16, 5, 64, 24, True, "HS", 2, 1), row(24, 5, 64, 24, True, "HS", 1, 1),
    ]  # fmt: skip
    return module.MobileNetV3(settings, 64, num_classes=CLASSES)


def _tv_efficientnet() -> nn.Module:
    module = _torchvision("efficientnet")
    row = partial(module.MBConvConfig, width_mult=1.0, depth_mult=1.0)
    settings = [row(1, 3, 1, 16, 8, 1), row(6, 3, 2, 8, 16, 2), row(6, 5, 2, 16, 24, 2)]
    return module.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=64)


def _tv_efficientnet_v2() -> nn.Module:
    module = _torchvision("efficientnet")
    settings = [
        module.FusedMBConvConfig(1, 3, 1, 8, 8, 1), module.FusedMBConvConfig(4, 3, 2, 8, 16, 2),
        module.MBConvConfig(4, 3, 2, 16, 24, 2),
    ]  # fmt: skip
    return module.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=64)


def _tv_regnet(se: float | None) -> nn.Module:
    module = _torchvision("regnet")
    params = module.BlockParams.from_init_params(depth=5, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=se)
    return module.RegNet(params, num_classes=CLASSES, stem_width=8)


def _tv_convnext() -> nn.Module:
    module = _torchvision("convnext")
    settings = [module.CNBlockConfig(16, 32, 1), module.CNBlockConfig(32, 48, 2), module.CNBlockConfig(48, None, 1)]
    return module.ConvNeXt(settings, stochastic_depth_prob=0.1, num_classes=CLASSES)


def _tv_vit() -> nn.Module:
    module = _torchvision("vision_transformer")
    return module.VisionTransformer(32, 8, 2, 2, 32, 64, dropout=0.1, attention_dropout=0.1, num_classes=CLASSES)


def _tv_swin(version: int) -> nn.Module:
    module = _torchvision("swin_transformer")
    block = {} if version == 1 else {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
    return module.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, **block)


def _tv_maxvit() -> nn.Module:
    return _torchvision("maxvit").MaxVit((32, 32), 16, 4, [16, 32], [1, 1], 8, 0.1, num_classes=CLASSES)


def _tv_masks(name: str) -> nn.Module:
    return getattr(_torchvision("segmentation"), name)(weights=None, weights_backbone=None, num_classes=CLASSES)


def _tv_pyramid() -> nn.Module:
    module = _torchvision("detection")
    return module.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES).backbone


class _Flow(nn.Module):
    """The optical flow from an image to the one that is its channels backwards."""

    def __init__(self):
        super().__init__()
        self.raft = _torchvision("optical_flow").raft_small(weights=None)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.raft(x, x.flip(1), num_flow_updates=2)


def _tv_swin3d() -> nn.Module:
    module = _torchvision("video")
    return module.SwinTransformer3d([2, 4, 4], 16, [1, 1], [2, 4], [2, 4, 4], num_classes=CLASSES)


def _tv_mvit() -> nn.Module:
    module = importlib.import_module("torchvision.models.video.mvit")
    row = partial(module.MSBlockConfig, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3])
    blocks = [row(1, 16, 32, stride_q=[1, 1, 1], stride_kv=[1, 2, 2]), row(2, 32, 32, stride_q=[1, 2, 2],
              stride_kv=[1, 1, 1])]  # fmt: skip
    return module.MViT(
        (32, 32), 4, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=False,
        proj_after_attn=True, num_classes=CLASSES,
    )  # fmt: skip


def _tv(submodule: str, name: str, **choices: Any) -> nn.Module:
    return getattr(_torchvision(submodule), name)(num_classes=CLASSES, **choices)


def _of_timm(module: str, name: str, *given: Any, **choices: Any) -> nn.Module:
    import_timm()
    return getattr(importlib.import_module(f"timm.models.{module}"), name)(*given, num_classes=CLASSES, **choices)


def _mixer(block: str) -> nn.Module:
    import_timm()
    module = importlib.import_module("timm.models.mlp_mixer")
    choices: dict[str, dict[str, Any]] = {
        "MixerBlock": {},
        "ResBlock": {"mlp_ratio": 4, "norm_layer": module.Affine},
        "SpatialGatingBlock": {"mlp_ratio": 6, "mlp_layer": module.GatedMlp},
    }
    return module.MlpMixer(
        CLASSES, 32, patch_size=8, num_blocks=2, embed_dim=32, block_layer=getattr(module, block), **choices[block]
    )


def _poolformer() -> nn.Module:
    import_timm()
    module = importlib.import_module("timm.models.metaformer")
    return module.MetaFormer(
        num_classes=CLASSES,
        depths=(1, 1),
        dims=(16, 32),
        token_mixers=module.Pooling,
        norm_layers=module.GroupNorm1,
        use_mlp_head=False,
    )


def _timm(name: str, **choices: Any) -> nn.Module:
    return import_timm().create_model(name, num_classes=CLASSES, **choices)


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_RESNET = {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48), "stem_width": 16}


def _row(
    name: str, build: Callable[..., nn.Module], *given: Any, size: int = 32, fast: bool = False, frames: int = 0,
    **choices: Any,
) -> ZooModel:  # fmt: skip
    return ZooModel(name, partial(build, *given, **choices), size, fast, (frames,) if frames else ())


ZOO: tuple[ZooModel, ...] = (
    _row("torchvision:alexnet", _tv_alexnet, size=64),
    _row("torchvision:vgg", _tv_vgg, False),
    _row("torchvision:vgg_bn", _tv_vgg, True),
    _row("torchvision:resnet", _tv_resnet),
    _row("torchvision:resnet bottleneck", _tv_resnet, "Bottleneck"),
    _row("torchvision:resnext", _tv_resnet, "Bottleneck", groups=4, width_per_group=8),
    _row("torchvision:wide_resnet", _tv_resnet, "Bottleneck", width_per_group=96),
    _row("torchvision:densenet", _tv_densenet),
    _row("torchvision:inception_v3", _tv, "inception", "Inception3", size=75, init_weights=False),
    _row("torchvision:googlenet", _tv, "googlenet", "GoogLeNet", init_weights=False),
    _row("torchvision:squeezenet1_0", _tv_squeezenet, "1_0", size=48),
    _row("torchvision:squeezenet1_1", _tv_squeezenet, "1_1"),
    _row("torchvision:mobilenet_v2", _tv_mobilenet_v2),
    _row("torchvision:mobilenet_v3", _tv_mobilenet_v3, fast=True),
    _row("torchvision:mnasnet", _tv, "mnasnet", "MNASNet", alpha=0.25),
    _row("torchvision:shufflenet_v2", _tv, "shufflenetv2", "ShuffleNetV2", stages_repeats=[1, 2, 1],
         stages_out_channels=[8, 16, 32, 64, 64]),
    _row("torchvision:efficientnet", _tv_efficientnet),
    _row("torchvision:efficientnet_v2", _tv_efficientnet_v2),
    _row("torchvision:regnet_x", _tv_regnet, None),
    _row("torchvision:regnet_y", _tv_regnet, 0.25),
    _row("torchvision:convnext", _tv_convnext),
    _row("torchvision:vit", _tv_vit, fast=True),
    _row("torchvision:swin", _tv_swin, 1),
    _row("torchvision:swin_v2", _tv_swin, 2),
    _row("torchvision:maxvit", _tv_maxvit),
    _row("torchvision:fcn", _tv_masks, "fcn_resnet50"),
    _row("torchvision:deeplabv3", _tv_masks, "deeplabv3_mobilenet_v3_large"),
    _row("torchvision:lraspp", _tv_masks, "lraspp_mobilenet_v3_large"),
    _row("torchvision:fcos, its pyramid", _tv_pyramid),
    _row("torchvision:raft", _Flow, size=128),
    _row("torchvision:r3d", _tv, "video", "r3d_18", frames=8),
    _row("torchvision:mc3", _tv, "video", "mc3_18", frames=8),
    _row("torchvision:r2plus1d", _tv, "video", "r2plus1d_18", frames=8),
    _row("torchvision:swin3d", _tv_swin3d, frames=8),
    _row("torchvision:mvit_v2", _tv_mvit, frames=4),
    _row("timm:resnet18", _timm, "resnet18", fast=True, **_RESNET),
    _row("timm:resnet50d", _timm, "resnet50d", **_RESNET),
    _row("timm:resnext50", _timm, "resnext50_32x4d", layers=(1, 1, 1, 1), channels=(16, 32, 32, 64), cardinality=4,
         base_width=16),
    _row("timm:seresnet18", _timm, "seresnet18", **_RESNET),
    _row("timm:ecaresnet", _timm, "ecaresnet50t", **_RESNET),
    _row("timm:skresnet", _timm, "skresnet18", **_RESNET),
    _row("timm:resnetrs", _timm, "resnetrs50", **_RESNET),
    _row("timm:resnetv2", _timm, "resnetv2_50", layers=(1, 1, 1), channels=(16, 32, 48), stem_chs=16),
    _row("timm:resnest", _timm, "resnest14d", stem_width=8, base_width=16),
    _row("timm:wide_resnet", _timm, "wide_resnet50_2", **_RESNET),
    _row("timm:vgg11_bn", _of_timm, "vgg", "VGG", [16, "M", 24, 32, "M", 48, "M"], norm_layer=nn.BatchNorm2d,
         mlp_ratio=0.01, size=56),
    _row("timm:densenet", _timm, "densenet121", growth_rate=8, block_config=(2, 2)),
    _row("timm:inception_v3", _timm, "inception_v3", size=75),
    _row("timm:mobilenetv2", _timm, "mobilenetv2_035"),
    _row("timm:mobilenetv3", _timm, "mobilenetv3_small_050"),
    _row("timm:efficientnet_lite", _timm, "efficientnet_lite0"),
    _row("timm:efficientnet", _timm, "efficientnet_b0"),
    _row("timm:mnasnet", _timm, "mnasnet_small"),
    _row("timm:ghostnet", _timm, "ghostnet_050"),
    _row("timm:regnetx", _timm, "regnetx_002"),
    _row("timm:regnety", _timm, "regnety_002"),
    _row("timm:repvgg", _timm, "repvgg_a0"),
    _row("timm:darknet", _timm, "cspdarknet53"),
    _row("timm:dla", _timm, "dla46_c"),
    _row("timm:hardcorenas", _timm, "hardcorenas_a"),
    _row("timm:xception", _timm, "xception41", size=48),
    _row("timm:nfnet", _timm, "nf_resnet26"),
    _row("timm:convnext", _timm, "convnext_atto", depths=(1, 1, 1, 1), dims=(16, 24, 32, 48)),
    _row("timm:convnextv2", _timm, "convnextv2_atto", depths=(1, 1, 1, 1), dims=(16, 24, 32, 48)),
    _row("timm:convmixer", _of_timm, "convmixer", "ConvMixer", 24, 2),
    _row("timm:vit", _timm, "vit_tiny_patch16_224", **_VIT),
    _row("timm:vit relative position", _timm, "vit_relpos_small_patch16_224", **_VIT),
    _row("timm:vit registers", _timm, "vit_small_patch14_reg4_dinov2", **_VIT),
    _row("timm:deit", _timm, "deit_tiny_patch16_224", **_VIT),
    _row("timm:deit distilled", _timm, "deit_tiny_distilled_patch16_224", **_VIT),
    _row("timm:deit3", _timm, "deit3_small_patch16_224", **_VIT),
    _row("timm:beit", _timm, "beit_base_patch16_224", **_VIT),
    _row("timm:cait", _timm, "cait_xxs24_224", **_VIT),
    _row("timm:eva02", _timm, "eva02_tiny_patch14_224", **_VIT),
    _row("timm:pit", _timm, "pit_ti_224", img_size=32, patch_size=8, stride=4, base_dims=(16, 16), depth=(1, 1),
         heads=(2, 4)),
    _row("timm:levit", _timm, "levit_128s", img_size=64, embed_dim=(32, 48), depth=(1, 1), num_heads=(2, 3),
         key_dim=8, size=64),
    _row("timm:swin", _timm, "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2),
         num_heads=(2, 4)),
    _row("timm:swinv2", _timm, "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=16, depths=(2, 2),
         num_heads=(2, 4)),
    _row("timm:pvt_v2", _timm, "pvt_v2_b0", depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 2), sr_ratios=(4, 2),
         mlp_ratios=(2, 2)),
    _row("timm:poolformer", _poolformer),
    _row("timm:mixer", _mixer, "MixerBlock"),
    _row("timm:resmlp", _mixer, "ResBlock"),
    _row("timm:gmlp", _mixer, "SpatialGatingBlock"),
)  # fmt: skip
