"""Writes `tests/golden/oc_timm_*/`: tiny open_clip checkpoints whose image tower is timm's, and what open_clip computes.

Each folder is a published configuration of open_clip, cut down (narrow, shallow, small images), with random values in every
tensor: `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer's files, and `golden.safetensors` with
`input_ids`, `attention_mask`, `pixel_values`, `text.*` and `image.*` (`hidden_states.{i}`, `last_hidden_state`, `pooled`),
`image_features`, `text_features`, `image_embeds`, `text_embeds`, `logits_per_image`.

What a file's shapes do not tell (the number of heads) stands in `vision_cfg.timm_model_kwargs`, which open_clip does not
have: here it is taken off and handed to `timm.create_model`.

`python make_timm_golden.py [name…]` rewrites all folders, or those named; the same versions give the same bytes.
Written with open_clip 3.3.0, timm 1.0.31, torch 2.11.0 (CPU).
"""

import contextlib
import copy
import json
import shutil
import sys
import zlib
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from timm.models import vision_transformer_hybrid, vitamin

from make_golden import CLIP_MEAN, CLIP_STD, GOLDEN, clip_tokenizer, text_inputs

CONFIGS = Path(open_clip.__file__).parent / "model_configs"
CONTEXT, EMBED = 16, 12
MAKERS = {}


def golden(make):
    """Registers a function that gives the arguments of `write` for the folder of its own name."""
    MAKERS[make.__name__] = make
    return make


# ------------------------------------------------------------------------------------------------------------- towers
@golden
def oc_timm_siglip():
    return dict(model="ViT-B-16-SigLIP", image_size=32, trunk=dict(embed_dim=24, depth=2))


@golden
def oc_timm_siglip_resized():  # more and fewer rows than the table's: timm resamples the positions
    return dict(model="ViT-B-16-SigLIP-256", image_size=32, pixels=24, trunk=dict(embed_dim=24, depth=1, patch_size=4))


@golden
def oc_timm_siglip2():  # GELU by tanh
    return dict(model="ViT-SO400M-16-SigLIP2-256", image_size=12,
                trunk=dict(embed_dim=32, depth=2, patch_size=4, num_heads=4))


@golden
def oc_timm_clip():
    return dict(model="MobileCLIP2-L-14", image_size=21, trunk=dict(embed_dim=32, depth=2, patch_size=7))


@golden
def oc_timm_gap():
    return dict(model="vit_medium_patch16_gap_256", image_size=24, trunk=dict(embed_dim=24, depth=2, patch_size=8))


@golden
def oc_timm_relpos():
    return dict(model="vit_relpos_medium_patch16_cls_224", image_size=24,
                trunk=dict(embed_dim=24, depth=2, patch_size=8, rel_pos_dim=16))


@golden
def oc_timm_mci():
    return dict(model="MobileCLIP-B", image_size=48, create=mobile_clip)


@golden
def oc_timm_pe():
    return dict(model="PE-Core-T-16-384", image_size=32, trunk=dict(embed_dim=24, depth=2, patch_size=8))


@golden
def oc_timm_pe_gigantic():  # without class token
    return dict(model="PE-Core-bigG-14-448", image_size=24, trunk=dict(embed_dim=16, depth=2, patch_size=8, num_heads=2))


@golden
def oc_timm_eva():
    return dict(model="EVA01-g-14", image_size=28, trunk=dict(embed_dim=16, depth=2))


@golden
def oc_timm_eva02():
    return dict(model="EVA02-L-14-336", image_size=24, seed=1,
                trunk=dict(embed_dim=32, depth=2, patch_size=8, num_heads=4))


@golden
def oc_timm_eva02_resized():  # learned positions are resampled, rotary ones scaled to the reference grid
    return dict(model="EVA02-B-16", image_size=24, pixels=32, trunk=dict(embed_dim=24, depth=1, patch_size=8, num_heads=3))


@golden
def oc_timm_eva02_enormous():
    return dict(model="EVA02-E-14", image_size=24, trunk=dict(embed_dim=16, depth=2, patch_size=8, num_heads=2))


@golden
def oc_timm_vitamin():
    return dict(model="ViTamin-S", image_size=48, create=vitamin_s)


@golden
def oc_timm_vitamin_xlarge():  # without positions
    return dict(model="ViTamin-XL-256", image_size=32, create=vitamin_xl)


@golden
def oc_timm_swin():  # windows of 7: 14 × 14, shifted, then the 7 × 7 that fit one window, then 4 × 4 and 2 × 2
    return dict(model="swin_base_patch4_window7_224", image_size=28,
                trunk=dict(embed_dim=4, depths=(2, 2, 1, 1), patch_size=2, num_heads=(1, 2, 2, 4)))


@golden
def oc_timm_swin_padded():  # windows that do not fill their maps: 15 × 15 and 8 × 8 places
    return dict(model="swin_base_patch4_window7_224", image_size=30,
                trunk=dict(embed_dim=4, depths=(2, 2, 1, 1), patch_size=2, num_heads=(1, 2, 2, 4)))


def mobile_clip(name, image_size, **kwargs):
    stem = vision_transformer_hybrid.ConvStem(channels=(6, 6, 24), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0,
                                              act_layer=torch.nn.GELU)
    sizes = dict(embed_dim=24, depth=2, num_heads=12, no_embed_class=True, img_size=image_size)
    return vision_transformer_hybrid._create_vision_transformer_hybrid(
        name, backbone=stem, embed_args=dict(proj=False), **sizes, **kwargs)


def vitamin_s(name, image_size, **kwargs):
    sizes = dict(embed_dim=24, depth=2, num_heads=6, mlp_ratio=2.0, class_token=False, img_size=image_size)
    return vitamin_tower(name, (8, 16, 24), (2, 2, 1), {**sizes, "global_pool": "avg", **kwargs})


def vitamin_xl(name, image_size, **kwargs):
    sizes = dict(embed_dim=32, depth=1, num_heads=16, mlp_ratio=2.0, class_token=False, img_size=image_size)
    return vitamin_tower(name, (8, 16, 32), (1, 1, 1), {**sizes, "global_pool": "avg", "pos_embed": "none", **kwargs})


def vitamin_tower(name, embed_dim, depths, kwargs):
    stages = vitamin.VitCfg(embed_dim=embed_dim, depths=depths, stem_width=embed_dim[0],
                            conv_cfg=vitamin.VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6), head_type="1d")
    return vitamin._create_vitamin(name, embed_cfg=stages, mlp_layer=vitamin.GeGluMlp, **kwargs)


@contextlib.contextmanager
def small_towers(create):
    """`timm.create_model` as open_clip calls it makes the small tower."""
    original = timm.create_model
    timm.create_model = create
    try:
        yield
    finally:
        timm.create_model = original


# ------------------------------------------------------------------------------------------------- weights and inputs
def randomise(model):
    """Gives every tensor random values: activations stay lively, and a swapped or missing term shows."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        noise, last = torch.randn(value.shape), name.rsplit(".")[-1]
        if name not in model.state_dict() or last == "num_batches_tracked":
            continue
        if last == "logit_scale":
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


def inputs(pixels):
    tokenizer = clip_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    text = text_inputs([CONTEXT, 6], bos, eos, 0, range(3, bos))
    return text, torch.randn(2, 3, pixels, pixels)


# ------------------------------------------------------------------------------------------------------ the reference
def states(prefix, blocks, found):
    """Hooks that note the first block's input and every block's output."""
    def first(_, args):
        found[f"{prefix}.hidden_states.0"] = args[0]

    def after(index):
        def note(_, args, output):
            found[f"{prefix}.hidden_states.{index}"] = output
        return note

    hooks = [blocks[0].register_forward_pre_hook(first)]
    return hooks + [block.register_forward_hook(after(i + 1)) for i, block in enumerate(blocks)]


@torch.no_grad()
def outputs(model, text, pixels):
    found = {}
    trunk, tower = model.visual.trunk, getattr(model, "text", model)
    blocks = trunk.blocks if hasattr(trunk, "blocks") else trunk.layers  # of a hierarchy the stages
    hooks = states("image", list(blocks), found) + states("text", list(tower.transformer.resblocks), found)
    ids = text["input_ids"]

    def note(key):
        def hook(_, args, output):
            found[key] = output
        return hook

    hooks.append(tower.ln_final.register_forward_hook(note("text.last_hidden_state")))
    image_features, text_features = model.encode_image(pixels), model.encode_text(ids)
    for hook in hooks:
        hook.remove()
    tokens = trunk.forward_features(pixels)
    image, words = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    rows = torch.arange(len(ids))
    logits = model.logit_scale.exp() * image @ words.T
    bias = getattr(model, "logit_bias", None)
    found = {key: value.flatten(1, 2) if value.ndim == 4 else value for key, value in found.items()}
    return {
        **found,
        "image.last_hidden_state": tokens.flatten(1, 2) if tokens.ndim == 4 else tokens,
        "image.pooled": trunk.forward_head(tokens, pre_logits=True),
        "text.pooled": found["text.last_hidden_state"][rows, ids.argmax(-1)],
        "image_features": image_features, "text_features": text_features,
        "image_embeds": image, "text_embeds": words,
        "logits_per_image": logits if bias is None else logits + bias,
        "logit_scale": model.logit_scale.detach(),
    }


def write(name, model, image_size, trunk=None, create=None, pixels=None, seed=0):
    """Writes the folder `name`: the shipped configuration `model` with a tower of `trunk`'s sizes. `seed`: another draw,
    where the first is ill conditioned."""
    torch.manual_seed(zlib.crc32(name.encode()) + seed)
    config = json.loads((CONFIGS / f"{model}.json").read_text())
    pixels = pixels or image_size
    vision = {**config["vision_cfg"], "image_size": pixels}
    text = {"context_length": CONTEXT, "vocab_size": len(clip_tokenizer()), "width": 16, "heads": 2, "layers": 1}
    config |= {"vision_cfg": vision, "text_cfg": text,
               "embed_dim": EMBED if vision["timm_proj"] != "none" else trunk["embed_dim"]}
    print(name, vision["timm_model_name"], flush=True)

    def small(model_name, pretrained=False, **kwargs):
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("drop")}
        if create:
            return create(model_name, image_size, **kwargs)
        return original(model_name, img_size=image_size, **{**trunk, **kwargs})

    original = timm.create_model
    arguments = copy.deepcopy(config)
    custom = arguments.pop("custom_text", False)
    arguments.pop("tokenizer_kwargs", None)
    with small_towers(small):
        built = (CustomTextCLIP if custom else CLIP)(**arguments)
    randomise(built)
    built.eval()
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({key: value.clone().contiguous() for key, value in built.state_dict().items()},
              folder / "open_clip_model.safetensors", {"format": "pt"})
    if pixels != image_size:
        built.visual.set_input_size(pixels)
    heads = {key: trunk[key] for key in ("num_heads", "depths") if key in (trunk or {})}
    if heads:
        vision["timm_model_kwargs"] = heads
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2) + "\n")
    clip_tokenizer().save_pretrained(folder)

    words, images = inputs(pixels)
    expected = outputs(built, words, images)
    found = outputs(built.double(), words, images.double())
    for key, value in expected.items():
        error = (value - found[key]).abs().max() / found[key].abs().max()
        assert torch.isfinite(value).all() and error < 3e-6, f"{name}: {key} is off by {error:.1e} in f32"
    tensors = {key: value.clone().contiguous() for key, value in {**words, "pixel_values": images, **expected}.items()}
    save_file(tensors, folder / "golden.safetensors")
    facts = {"model": type(built).__name__, "trunk": type(built.visual.trunk).__name__}
    (folder / "golden.json").write_text(json.dumps(facts, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 300_000, f"{name}: {size} bytes"
    print("  ", size, "bytes")


if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        write(name, **MAKERS[name]())
