"""An encoder of each family, small and with random weights, for tests of what all must keep."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs
from encoders.image import ImageEncoder, ImageTransform, SmallImageEncoder
from encoders.image_towers import build_open_clip, build_timm, build_torchvision
from encoders.text import SmallTextEncoder, TextEncoder, TextTransform, train_vocabulary

WORDS = [
    "red", "blue", "quiet", "storm", "river", "king", "castle", "train", "ghost", "garden",
    "robot", "island", "violin", "desert", "market", "winter",
]  # fmt: skip
TEXTS = [
    " ".join(WORDS[(i * step + i * i) % len(WORDS)] for i in range(60)) for step in range(1, 9)
]


def make_bert() -> TextEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=300,
    )  # fmt: skip
    return TextEncoder(BertModel(config).eval())


def make_roberta() -> TextEncoder:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        intermediate_size=64, max_position_embeddings=300, type_vocab_size=1,
    )  # fmt: skip
    return TextEncoder(RobertaModel(config).eval())


def make_distilbert() -> TextEncoder:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=300
    )
    return TextEncoder(DistilBertModel(config).eval())


def make_gpt() -> TextEncoder:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=200, n_embd=32, n_layer=2, n_head=4, n_positions=300,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return TextEncoder(GPT2Model(config).eval())


def make_small_text() -> SmallTextEncoder:
    torch.manual_seed(0)
    return SmallTextEncoder(vocabulary_size=200, width=32).eval()


CLIP_VIT = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 64, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32,
    },
}  # fmt: skip
CLIP_RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 128, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
}
Make = Callable[[], ImageEncoder]
MAKERS: dict[str, Make] = {
    "timm-efficientnet": lambda: build_timm(
        "tf_efficientnet_lite0", transform=ImageTransform(size=160)
    ),
    "timm-mobilenet": lambda: build_timm(
        "mobilenetv3_small_050", transform=ImageTransform(size=128)
    ),
    "timm-resnet": lambda: build_timm("resnet10t", transform=ImageTransform(size=128)),
    "timm-convnext": lambda: build_timm("convnext_atto", transform=ImageTransform(size=128)),
    "timm-vit": lambda: build_timm("vit_tiny_patch16_224", transform=ImageTransform(size=96)),
    "timm-whole-inception": lambda: build_timm("inception_v3", transform=ImageTransform(size=139)),
    "torchvision-resnet": lambda: build_torchvision("resnet18", transform=ImageTransform(size=128)),
    "open_clip-resnet": lambda: build_open_clip(CLIP_RESNET),
    "open_clip-vit": lambda: build_open_clip(CLIP_VIT),
    "small": lambda: SmallImageEncoder().eval(),  # type: ignore[dict-item, return-value]
}


def build(make: Make) -> ImageEncoder:
    torch.manual_seed(0)
    return make()


def pictures(encoder: ImageEncoder, num_items: int) -> list[torch.Tensor | None]:
    rng = np.random.default_rng(0)
    shape = (encoder.transform.size, encoder.transform.size + 9, 3)
    return [
        encoder.transform(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(num_items)
    ]


Case = Callable[[], tuple[StackedEncoder, Inputs]]


def bert() -> tuple[StackedEncoder, Inputs]:
    transform = TextTransform(train_vocabulary(TEXTS, 200), max_length=48)
    samples = [transform(TEXTS[0]), None, transform(" ".join(WORDS[:3]))]
    return make_bert().eval(), transform.collate(samples)


def small_text() -> tuple[StackedEncoder, Inputs]:
    return make_small_text(), bert()[1]


def image(name: str) -> Case:
    def case() -> tuple[StackedEncoder, Inputs]:
        encoder = build(MAKERS[name])
        first, second = pictures(encoder, 2)
        return encoder, encoder.transform.collate([first, None, second])

    return case


CASES: dict[str, Case] = {
    "bert": bert,
    "small-text": small_text,
    "clip-vit": image("open_clip-vit"),
    "timm-vit": image("timm-vit"),
    "efficientnet": image("timm-efficientnet"),
    "resnet": image("torchvision-resnet"),
}
# what trains in place of an encoder's own weights: convolutions have no prompt and no AdaLoRA
METHODS = {
    "bert": ("lora", "adalora", "ia3", "prompt", "adapter"),
    "small-text": ("lora", "adalora", "ia3", "prompt", "adapter"),
    "clip-vit": ("lora", "adalora", "ia3", "prompt", "adapter"),
    "timm-vit": ("lora", "adalora", "ia3", "prompt", "adapter"),
    "efficientnet": ("lora", "ia3", "adapter"),
    "resnet": ("lora", "ia3", "adapter"),
}
