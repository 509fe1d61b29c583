"""Strangers' models of the library ``transformers``: images, films, sounds, sentences, series; small, random weights.

A row is a name, the class and the configuration that its authors wrote, and what it reads. The library is not needed
for anything else: where it is missing, these are left out, visibly.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from zoo_models import CLASSES, ZooModel

from spikezip.models.torchvision_ops import import_torchvision

WORDS = 99  #: of the vocabulary
INSTALLED = importlib.util.find_spec("transformers") is not None


def _noise(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda batch, generator: torch.randn(batch, *shape, generator=generator)


def _words(length: int = 16) -> Callable[[int, torch.Generator], Tensor]:
    return lambda batch, generator: torch.randint(3, WORDS, (batch, length), generator=generator)


_IMAGES, _BIG = _noise(3, 32, 32), _noise(3, 64, 64)


@dataclass(frozen=True)
class Foreign(ZooModel):
    """One network that reads something else than images of three channels, perhaps."""

    reads: Callable[[int, torch.Generator], Tensor] = _IMAGES

    def example(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Random inputs, ``[batch, ...]``."""
        return self.reads(batch, torch.Generator().manual_seed(seed))


def _model(model: str, config: str, choices: dict[str, Any]) -> nn.Module:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: all weights are random
    import_torchvision()
    import transformers  # pyright: ignore[reportMissingImports]

    for key, value in choices.items():
        if isinstance(value, tuple):  # a configuration within the configuration
            name, inner = value
            choices = choices | {key: getattr(transformers, name)(**inner)}
    return getattr(transformers, model)(getattr(transformers, config)(**choices))


def _row(name: str, model: str, config: str, reads: Any = _IMAGES, **choices: Any) -> Foreign:
    return Foreign(f"transformers:{name}", partial(_model, model, config, choices), reads=reads)


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_VIT = {**_SMALL, "image_size": 32, "patch_size": 8, "num_labels": CLASSES}
_FILM = {**_SMALL, "image_size": 32, "num_frames": 4, "num_labels": CLASSES}
_TEXT = {**_SMALL, "vocab_size": WORDS, "max_position_embeddings": 64}
_LABELLED = {**_TEXT, "num_labels": CLASSES}
_CAUSAL = {**_TEXT, "use_cache": False}
_PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_labels": CLASSES}
_HEADS = {**_PYRAMID, "num_attention_heads": [1, 2, 2, 4]}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_SOUND = {
    **_SMALL, "vocab_size": 32, "conv_dim": [16] * 3, "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3],
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_labels": CLASSES,
}  # fmt: skip
#: What is refused, and why: a mask drawn at random each time is no function of the image.
REFUSED = {"transformers:vit_mae": "draws random numbers"}

TRANSFORMERS: tuple[Foreign, ...] = (
    # images
    _row("vit", "ViTForImageClassification", "ViTConfig", **_VIT),
    _row("deit", "DeiTForImageClassification", "DeiTConfig", **_VIT),
    _row("beit", "BeitForImageClassification", "BeitConfig", **_VIT, use_relative_position_bias=True),
    _row("data2vec", "Data2VecVisionForImageClassification", "Data2VecVisionConfig", **_VIT),
    _row("dinov2", "Dinov2ForImageClassification", "Dinov2Config", **_VIT),
    _row("ijepa", "IJepaForImageClassification", "IJepaConfig", **_VIT),
    _row("clip", "CLIPVisionModel", "CLIPVisionConfig", **_SMALL, image_size=32, patch_size=8),
    _row("siglip", "SiglipVisionModel", "SiglipVisionConfig", **_SMALL, image_size=32, patch_size=8),
    _row("vitdet", "VitDetModel", "VitDetConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
         image_size=32, patch_size=8, window_size=2, window_block_indices=[0], use_relative_position_embeddings=True),
    _row("swin", "SwinForImageClassification", "SwinConfig", **_SWIN, num_labels=CLASSES),
    _row("swinv2", "Swinv2ForImageClassification", "Swinv2Config", **_SWIN, num_labels=CLASSES),
    _row("hiera", "HieraForImageClassification", "HieraConfig", _BIG, embed_dim=8, image_size=[64, 64],
         depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 4], num_labels=CLASSES),
    _row("pvt", "PvtForImageClassification", "PvtConfig", _BIG, image_size=64, **_HEADS),
    _row("pvt_v2", "PvtV2ForImageClassification", "PvtV2Config", _BIG, image_size=64, **_HEADS),
    _row("segformer", "SegformerForImageClassification", "SegformerConfig", _BIG, **_HEADS),
    _row("convnext", "ConvNextForImageClassification", "ConvNextConfig", _BIG, **_PYRAMID),
    _row("convnextv2", "ConvNextV2ForImageClassification", "ConvNextV2Config", _BIG, **_PYRAMID),
    _row("poolformer", "PoolFormerForImageClassification", "PoolFormerConfig", _BIG, **_PYRAMID),
    _row("focalnet", "FocalNetForImageClassification", "FocalNetConfig", _BIG, image_size=64, embed_dim=8,
         depths=[1, 1, 1, 1], num_labels=CLASSES),
    _row("cvt", "CvtForImageClassification", "CvtConfig", _BIG, embed_dim=[16, 32, 48], num_heads=[1, 2, 3],
         depth=[1, 2, 3], num_labels=CLASSES),
    _row("levit", "LevitForImageClassification", "LevitConfig", _BIG, image_size=64, hidden_sizes=[16, 24, 32],
         num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8], num_labels=CLASSES),
    _row("mobilevit", "MobileViTForImageClassification", "MobileViTConfig", _BIG, image_size=64,
         hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], num_attention_heads=4,
         num_labels=CLASSES),
    _row("mobilevitv2", "MobileViTV2ForImageClassification", "MobileViTV2Config", _BIG, image_size=64,
         width_multiplier=0.25, num_labels=CLASSES),
    _row("resnet", "ResNetForImageClassification", "ResNetConfig", _BIG, embedding_size=16, depths=[1, 1, 1, 1],
         hidden_sizes=[16, 32, 48, 64], num_labels=CLASSES),
    _row("bit", "BitForImageClassification", "BitConfig", _BIG, embedding_size=16, depths=[1, 1, 1, 1], num_groups=8,
         hidden_sizes=[32, 32, 64, 64], num_labels=CLASSES),
    _row("regnet", "RegNetForImageClassification", "RegNetConfig", _BIG, embedding_size=16, depths=[1, 1, 1, 1],
         hidden_sizes=[16, 32, 48, 64], groups_width=8, num_labels=CLASSES),
    _row("efficientnet", "EfficientNetForImageClassification", "EfficientNetConfig", _BIG, image_size=64,
         width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, num_labels=CLASSES),
    _row("mobilenet_v1", "MobileNetV1ForImageClassification", "MobileNetV1Config", _BIG, image_size=64,
         depth_multiplier=0.25, num_labels=CLASSES),
    _row("mobilenet_v2", "MobileNetV2ForImageClassification", "MobileNetV2Config", _BIG, image_size=64,
         depth_multiplier=0.25, num_labels=CLASSES),
    _row("vit_mae", "ViTMAEModel", "ViTMAEConfig", **_SMALL, image_size=32, patch_size=8),
    # answers for each place
    _row("yolos", "YolosForObjectDetection", "YolosConfig", **{**_VIT, "image_size": [32, 32]},
         num_detection_tokens=5),
    _row("segformer masks", "SegformerForSemanticSegmentation", "SegformerConfig", _BIG, **_HEADS,
         decoder_hidden_size=16),
    _row("upernet", "UperNetForSemanticSegmentation", "UperNetConfig", _BIG, hidden_size=16, auxiliary_in_channels=24,
         auxiliary_channels=16, pool_scales=[1, 2], num_labels=CLASSES, backbone_config=("ConvNextConfig", {
             "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
             "out_features": ["stage1", "stage2", "stage3", "stage4"]})),
    _row("dpt depth", "DPTForDepthEstimation", "DPTConfig", **{**_VIT, "num_hidden_layers": 4},
         backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8),
    _row("swin2sr", "Swin2SRForImageSuperResolution", "Swin2SRConfig", _noise(3, 16, 16), image_size=16, embed_dim=16,
         depths=[2], num_heads=[2], window_size=4, upscale=2),
    # films
    _row("videomae", "VideoMAEForVideoClassification", "VideoMAEConfig", _noise(4, 3, 32, 32), **_FILM, patch_size=8),
    _row("timesformer", "TimesformerForVideoClassification", "TimesformerConfig", _noise(4, 3, 32, 32), **_FILM,
         patch_size=8),
    _row("vivit", "VivitForVideoClassification", "VivitConfig", _noise(4, 3, 32, 32), **_FILM, tubelet_size=[2, 8, 8]),
    # sounds and series
    _row("ast", "ASTForAudioClassification", "ASTConfig", _noise(64, 32), **_SMALL, max_length=64, num_mel_bins=32,
         num_labels=CLASSES),
    _row("wav2vec2", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", _noise(1600), **_SOUND),
    _row("hubert", "HubertForSequenceClassification", "HubertConfig", _noise(1600), **_SOUND),
    _row("patchtst", "PatchTSTForClassification", "PatchTSTConfig", _noise(32, 3), num_input_channels=3,
         context_length=32, patch_length=8, patch_stride=8, d_model=32, num_hidden_layers=2, num_attention_heads=4,
         ffn_dim=64, num_targets=CLASSES, use_cls_token=True),
    # sentences
    _row("bert", "BertForSequenceClassification", "BertConfig", _words(), **_LABELLED),
    _row("roberta", "RobertaForSequenceClassification", "RobertaConfig", _words(), **_LABELLED),
    _row("distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", _words(), dim=32, n_layers=2,
         n_heads=4, hidden_dim=64, vocab_size=WORDS, max_position_embeddings=64, num_labels=CLASSES),
    _row("albert", "AlbertForSequenceClassification", "AlbertConfig", _words(), **_LABELLED, embedding_size=16),
    _row("electra", "ElectraForSequenceClassification", "ElectraConfig", _words(), **_LABELLED, embedding_size=16),
    _row("mobilebert", "MobileBertForSequenceClassification", "MobileBertConfig", _words(),
         **{**_LABELLED, "intermediate_size": 32}, embedding_size=16, intra_bottleneck_size=16),
    _row("squeezebert", "SqueezeBertForSequenceClassification", "SqueezeBertConfig", _words(), **_LABELLED,
         embedding_size=32),
    _row("deberta_v2", "DebertaV2ForSequenceClassification", "DebertaV2Config", _words(), **_LABELLED,
         relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]),
    _row("modernbert", "ModernBertForSequenceClassification", "ModernBertConfig", _words(), **_LABELLED,
         global_attn_every_n_layers=2, local_attention=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
         cls_token_id=1, sep_token_id=2),
    _row("esm", "EsmForSequenceClassification", "EsmConfig", _words(), **_LABELLED, pad_token_id=0, mask_token_id=1,
         position_embedding_type="rotary"),
    _row("fnet", "FNetForSequenceClassification", "FNetConfig", _words(), hidden_size=32, num_hidden_layers=2,
         intermediate_size=64, vocab_size=WORDS, max_position_embeddings=64, num_labels=CLASSES),
    _row("t5 encoder", "T5EncoderModel", "T5Config", _words(), d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64,
         vocab_size=WORDS),
    # language models: scores of the next word at every place
    _row("gpt2", "GPT2LMHeadModel", "GPT2Config", _words(), n_embd=32, n_layer=2, n_head=4, vocab_size=WORDS,
         n_positions=64, use_cache=False, bos_token_id=1, eos_token_id=2),
    _row("opt", "OPTForCausalLM", "OPTConfig", _words(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
         ffn_dim=64, vocab_size=WORDS, max_position_embeddings=64, word_embed_proj_dim=32, use_cache=False),
    _row("llama", "LlamaForCausalLM", "LlamaConfig", _words(), **_CAUSAL, num_key_value_heads=2),
    _row("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _words(), **_CAUSAL, num_key_value_heads=2),
    _row("gemma", "GemmaForCausalLM", "GemmaConfig", _words(), **_CAUSAL, num_key_value_heads=2, head_dim=8),
    _row("phi", "PhiForCausalLM", "PhiConfig", _words(), **_CAUSAL),
    _row("mamba", "MambaForCausalLM", "MambaConfig", _words(8), hidden_size=32, num_hidden_layers=2,
         vocab_size=WORDS, use_cache=False),
)  # fmt: skip
