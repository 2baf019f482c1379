"""Writes `tests/open_clip_configs.json`: facts about the model configurations that the package open-clip-torch carries.

For each configuration its `model_cfg`, and which lists of tensors its image half, its text half and the rest have; for each
list the lines `name shape`, as the state dict of open_clip's own model has them. Braces stand for all numbers of a range or for
each of several words: `blocks.{0-11}.norm1.{bias,weight} 768`. `text_decoder` of a CoCa model and counters of batches are left out.

The models are built without memory (PyTorch's meta device). Hugging Face's text towers are built from their published sizes.
Written with open_clip 3.3.0, timm 1.0.31, transformers 5.23.0, torch 2.11.0.
"""

import copy
import hashlib
import json
import re
import sys
from pathlib import Path

import open_clip
import torch
import transformers as tf
from open_clip.coca_model import CoCa
from open_clip.factory import _MODEL_CONFIGS
from open_clip.model import CLIP, CustomTextCLIP

TARGET = Path(__file__).resolve().parent.parent / "open_clip_configs.json"
LEFT_OUT = re.compile(r"^text_decoder\.|num_batches_tracked$|position_ids$|relative_position_index$")
INDEXED = re.compile(r"\b(?:resblocks|blocks|layers?|layer[1-4]|block)\.(\d+)\.")

XLMR = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
NLLB = {"vocab_size": 256206, "max_position_embeddings": 1024, "d_model": 1024, "encoder_attention_heads": 16,
        "decoder_attention_heads": 16, "pad_token_id": 1, "scale_embedding": True}
# The sizes in the `config.json` of each text tower on the hub.
PUBLISHED = {
    "roberta-base": lambda: tf.RobertaConfig(**XLMR | {"vocab_size": 50265}),
    "xlm-roberta-base": lambda: tf.XLMRobertaConfig(**XLMR),
    "xlm-roberta-large": lambda: tf.XLMRobertaConfig(
        **XLMR, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "google/mt5-base": lambda: tf.MT5Config(
        vocab_size=250112, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12, feed_forward_proj="gated-gelu"),
    "google/mt5-xl": lambda: tf.MT5Config(
        vocab_size=250112, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu"),
    "facebook/nllb-200-distilled-600M": lambda: tf.M2M100Config(
        **NLLB, encoder_layers=12, decoder_layers=12, encoder_ffn_dim=4096, decoder_ffn_dim=4096),
    "facebook/nllb-200-distilled-1.3B": lambda: tf.M2M100Config(
        **NLLB, encoder_layers=24, decoder_layers=24, encoder_ffn_dim=8192, decoder_ffn_dim=8192),
}
tf.AutoConfig.from_pretrained = lambda name: PUBLISHED[name]()


def build(cfg):
    """The class that open_clip's factory takes, without memory."""
    cfg = copy.deepcopy(cfg)
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    cfg["text_cfg"] |= {"hf_model_pretrained": False} if "hf_model_name" in cfg["text_cfg"] else {}
    kind = (CoCa if "multimodal_cfg" in cfg else CustomTextCLIP) if custom else CLIP
    with torch.device("meta"):
        return kind(**cfg)


def ranges(numbers):
    """Runs of following numbers: [0, 1, 2, 5] → ["0-2", "5"]."""
    runs = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [f"{first}-{last}" for first, last in runs]


def lines(tensors):
    """`name shape` for each tensor, numbers of blocks folded."""
    folded = {}
    for name, shape in tensors.items():
        number = INDEXED.search(name)
        place = name[: number.start(1)] + "{}" + name[number.end(1) :] if number else name
        folded.setdefault((place, "×".join(map(str, shape))), []).append(int(number[1]) if number else None)
    found = []
    for (place, shape), numbers in folded.items():
        for run in [""] if numbers == [None] else ranges(numbers):
            found.append(f"{place.replace('{}', '{' + run + '}')} {shape}".rstrip())
    # Names that differ in their last part only: `norm.{bias,weight} 768`.
    ends = {}
    for line in found:
        name, _, shape = line.partition(" ")
        module, dot, last = name.rpartition(".")
        ends.setdefault((module + dot, shape), []).append(last)
    one = lambda lasts: lasts[0] if len(lasts) == 1 else "{" + ",".join(sorted(lasts)) + "}"
    return sorted(f"{module}{one(lasts)} {shape}".rstrip() for (module, shape), lasts in ends.items())


def main():
    configs, lists = {}, {}
    for name, cfg in _MODEL_CONFIGS.items():
        try:
            model = build(cfg)
        except Exception as error:
            print(name, type(error).__name__, str(error)[:200], file=sys.stderr)
            continue
        tensors = {key: tuple(value.shape) for key, value in model.state_dict().items() if not LEFT_OUT.search(key)}
        halves = {"image": {}, "text": {}, "rest": {}}
        for key, shape in tensors.items():
            half = "image" if key.startswith("visual.") else "rest" if key.startswith("logit_") else "text"
            halves[half][key] = shape
        config = {"model_cfg": cfg, "numbers": sum(value.numel() for key, value in model.state_dict().items() if key in tensors)}
        for half, found in halves.items():
            found = lines(found)
            key = hashlib.sha256("\n".join(found).encode()).hexdigest()[:6]
            lists[key] = found
            config[half] = key
        configs[name] = config
    text = ["{", '"configs": {']
    text.append(",\n".join(f"{json.dumps(name)}: {json.dumps(config, separators=(',', ':'))}" for name, config in configs.items()))
    text += ["},", '"tensors": {']
    text.append(",\n".join(f"{json.dumps(key)}: {json.dumps(found, separators=(',', ':'), ensure_ascii=False)}" for key, found in sorted(lists.items())))
    text += ["}", "}", ""]
    TARGET.write_text("\n".join(text))
    print(len(configs), "configurations,", len(lists), "lists,", TARGET.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
