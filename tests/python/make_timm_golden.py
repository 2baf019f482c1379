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

import json
import sys

import torch
from timm.models import vision_transformer_hybrid, vitamin

from golden_folder import begin, check_double, check_size, registry, save
from open_clip_timm import build, inputs, published, randomise, save_config

MAKERS, golden = registry()  # functions that give the arguments of `write`


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
    folder = begin(name, seed)
    pixels = pixels or image_size
    config = published(model, {"image_size": pixels})
    vision = config["vision_cfg"]
    if vision["timm_proj"] == "none":
        config["embed_dim"] = trunk["embed_dim"]
    print(name, vision["timm_model_name"], flush=True)

    def small(original, model_name, **kwargs):
        if create:
            return create(model_name, image_size, **kwargs)
        return original(model_name, img_size=image_size, **{**trunk, **kwargs})

    built = build(config, small)
    randomise(built)
    built.eval()
    save(built.state_dict(), folder / "open_clip_model.safetensors", {"format": "pt"})
    if pixels != image_size:
        built.visual.set_input_size(pixels)
    heads = {key: trunk[key] for key in ("num_heads", "depths") if key in (trunk or {})}
    if heads:
        vision["timm_model_kwargs"] = heads
    save_config(folder, config)

    words, images = inputs(pixels, pixels)
    expected = outputs(built, words, images)
    check_double(name, expected, outputs(built.double(), words, images.double()))
    save({**words, "pixel_values": images, **expected}, folder / "golden.safetensors")
    facts = {"model": type(built).__name__, "trunk": type(built.visual.trunk).__name__}
    (folder / "golden.json").write_text(json.dumps(facts, indent=1) + "\n")
    print("  ", check_size(folder), "bytes")


if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        write(name, **MAKERS[name]())
