"""What `make_open_clip_conv_golden.py` and `make_timm_golden.py` share: published configurations of open_clip cut down, with
timm's towers made small."""

import contextlib
import copy
import json
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP

from make_golden import CLIP_MEAN, CLIP_STD, clip_tokenizer, text_inputs

CONFIGS = Path(open_clip.__file__).parent / "model_configs"
CONTEXT, EMBED = 16, 12


def published(model, vision, keep=()):
    """The shipped configuration `model` with a small text tower, which has the shipped one's fields `keep`, and with changes of
    `vision_cfg`."""
    config = json.loads((CONFIGS / f"{model}.json").read_text())
    shipped = config["text_cfg"]
    text = {"context_length": CONTEXT, "vocab_size": len(clip_tokenizer()), "width": 16, "heads": 2, "layers": 1,
            **{key: shipped[key] for key in keep if key in shipped}}
    return config | {"vision_cfg": {**config["vision_cfg"], **vision}, "text_cfg": text, "embed_dim": EMBED}


@contextlib.contextmanager
def small_towers(create):
    """`timm.create_model` as open_clip calls it gives `create(original, name, **arguments)`, nothing dropped in training."""
    original = timm.create_model

    def small(name, pretrained=False, **kwargs):
        return create(original, name, **{key: value for key, value in kwargs.items() if not key.startswith("drop")})

    timm.create_model = small
    try:
        yield
    finally:
        timm.create_model = original


def build(config, create):
    """The class that open_clip's factory takes for `config`, with the image tower that `create` makes."""
    arguments = copy.deepcopy(config)
    custom = arguments.pop("custom_text", False)
    arguments.pop("tokenizer_kwargs", None)
    with small_towers(create):
        return (CustomTextCLIP if custom else CLIP)(**arguments)


def randomise(model, special=lambda name, noise: None):
    """Gives every tensor random values: activations stay lively, and a swapped or missing term shows. `special(name, noise)`
    says what a tensor becomes that is not as the others."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        noise, last = torch.randn(value.shape), name.rsplit(".")[-1]
        if name not in model.state_dict() or last == "num_batches_tracked":
            continue
        new = special(name, noise)
        if new is not None:
            pass
        elif last == "logit_scale":
            new = 1.5 + 0.2 * noise
        elif last == "logit_bias":
            new = -2.0 + 0.2 * noise
        elif last == "running_var":
            new = 1.0 + 0.8 * torch.rand(value.shape)
        elif last.startswith("gamma") or value.ndim == 1 and last == "weight":  # layer scale, norm weights
            new = 1.0 + 0.3 * noise
        elif value.ndim == 1:
            new = 0.3 * noise
        elif any(part in last for part in ("embed", "token", "latent", "table")) or "token_embedding" in name:
            new = 0.5 * noise
        elif last == "text_projection":
            new = noise * 1.2 / value.shape[0] ** 0.5
        else:
            new = noise * 1.2 / value[0].numel() ** 0.5
        value.data.copy_(new)


def inputs(height, width):
    """Two texts of different lengths, and two images."""
    tokenizer = clip_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    text = text_inputs([CONTEXT, 6], bos, eos, 0, range(3, bos))
    return text, torch.randn(2, 3, height, width)


def save_config(folder, config):
    """The folder's `open_clip_config.json` and its tokenizer's files."""
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2) + "\n")
    clip_tokenizer().save_pretrained(folder)
