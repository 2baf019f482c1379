"""Writes `tests/golden/open_clip_*/`: tiny checkpoints in open_clip's layout and what open_clip computes with them.

Every folder holds `open_clip_config.json`, `open_clip_model.safetensors` with random weights in every tensor, and a tokenizer, plus

* `golden.safetensors`: `input_ids`, `pixel_values`, `text.*` and `image.*` (`hidden_states.{i}`, the blocks' inputs and the
  last block's output; `last_hidden_state`; `pooled`, before the projection), `image_features`, `text_features`,
  `image_embeds`, `text_embeds`, `logits_per_image`, `logit_scale`;
* `golden.json`: the class that computed it, and `sample_texts` with the ids that open_clip's tokenizer gives;
* `sample_pixel_values` in `golden.safetensors`: `sample.png` through open_clip's transform.

`text.last_hidden_state` is normed by `ln_final`. `image.last_hidden_state` is normed by `ln_post` where open_clip norms all
tokens and takes their mean, and is the last block's output elsewhere.

`python make_open_clip_golden.py [name…]` rewrites all folders, or those named; the same versions give the same bytes.
Written with open_clip 3.3.0, timm 1.0.31, torch 2.11.0 (CPU), Pillow 13.0.0.
"""

import copy
import json
import sys

import open_clip
import timm
import torch
from golden_folder import GOLDEN, begin, check_double, registry, save
from make_golden import SAMPLE_TEXTS, clip_tokenizer, sample_image
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from torch.nn import functional as F

CONTEXT = 16
TOKENIZER = clip_tokenizer()
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
VOCAB = len(TOKENIZER) + 3  # three ids lie above the EOS, as tokens added later do
MAKERS, golden = registry("open_clip_")


# ---------------------------------------------------------------------------------------------------- configurations
def vision(**changes):
    return {"layers": 2, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 12, "mlp_ratio": 2.2, **changes}


def text(**changes):
    return {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 20, "heads": 2, "layers": 2, "mlp_ratio": 2.3, **changes}


def model_cfg(vision_cfg=None, text_cfg=None, **changes):
    return {"embed_dim": 12, "vision_cfg": vision_cfg or vision(), "text_cfg": text_cfg or text(), **changes}


def build(cfg):
    """The class that open_clip's factory takes."""
    cfg = copy.deepcopy(cfg)
    custom = cfg.pop("custom_text", False)
    kind = (CoCa if "multimodal_cfg" in cfg else CustomTextCLIP) if custom else CLIP
    return kind(**cfg)


# ------------------------------------------------------------------------------------------------- weights and inputs
def randomise(model, keep=()):
    """Gives every parameter random values: activations stay lively, and a swapped or missing term shows."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        last = name.split(".")[-1]
        if name in keep:
            continue
        elif name in ("logit_scale", "logit_bias"):
            value = 1.5 + 0.2 * noise
        elif last in ("gamma", "head_scale") or (parameter.ndim == 1 and last == "weight"):
            value = 1.0 + 0.3 * noise  # layer scale, head scale, norm weights
        elif parameter.ndim == 1 and last not in ("class_embedding", "cls_emb"):
            value = 0.3 * noise
        elif last in ("class_embedding", "cls_emb", "positional_embedding", "query", "pos_embed", "latent") or "token_embedding" in name:
            value = 0.5 * noise
        else:
            value = noise * 1.2 / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)


def input_ids(eos=EOS, pad=0):
    """Rows of the full context, as open_clip's tokenizers give them. One row has the EOS twice."""
    rows = torch.full((3, CONTEXT), pad, dtype=torch.int64)
    for row, length in enumerate([12, CONTEXT, 7]):
        rows[row, 0], rows[row, length - 1] = BOS, eos
        rows[row, 1 : length - 1] = torch.randint(3, BOS, (length - 2,))
    rows[0, 13] = eos
    return rows


# ------------------------------------------------------------------------------------------------------- the reference
def states(blocks, run):
    """The inputs of all blocks and the last one's output while `run` runs."""
    found = []
    hooks = [block.register_forward_hook(lambda _, args, out: found.append((args[0], out))) for block in blocks]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [before for before, _ in found] + [found[-1][1]]


def first(output):
    return output[0] if isinstance(output, tuple) else output


def without(module, name, run):
    """What `run` gives while `module` has no projection."""
    projection = getattr(module, name)
    setattr(module, name, None)
    try:
        return first(run())
    finally:
        setattr(module, name, projection)


@torch.no_grad()
def outputs(model, ids, pixels):
    tower = getattr(model, "text", model)
    run_text, run_image = lambda: model.encode_text(ids), lambda: model.encode_image(pixels)
    if tower is not model:
        run_text = lambda: tower(ids)
    run_image = lambda: model.visual(pixels)
    visual = model.visual
    text_states = states(tower.transformer.resblocks, run_text)
    if hasattr(visual, "trunk"):  # timm's SigLIP, which pools by attention
        image_states, norm, image_pooled = states(visual.trunk.blocks, run_image), visual.trunk.norm, run_image
    else:
        normed_mean = visual.pool_type == "avg" and not visual.final_ln_after_pool and visual.attn_pool is None
        image_states, norm = states(visual.transformer.resblocks, run_image), visual.ln_post if normed_mean else torch.clone
        image_pooled = lambda: without(visual, "proj", run_image)
    squeeze = lambda x: x.squeeze(1) if x.ndim == 3 else x  # `parallel` and `cascade` keep an axis of one query
    result = {f"text.hidden_states.{i}": state for i, state in enumerate(text_states)}
    result |= {f"image.hidden_states.{i}": state for i, state in enumerate(image_states)}
    image_features, text_features = squeeze(first(run_image())), first(run_text())
    image_embeds, text_embeds = F.normalize(image_features, dim=-1), F.normalize(text_features, dim=-1)
    logits = model.logit_scale.exp() * image_embeds @ text_embeds.T
    if model.logit_bias is not None:
        logits = logits + model.logit_bias
    # The library's own way from pixels and ids to embeddings.
    assert torch.equal(squeeze(model.encode_image(pixels, normalize=True)), image_embeds)
    assert torch.equal(model.encode_text(ids, normalize=True), text_embeds)
    return result | {
        "text.last_hidden_state": tower.ln_final(text_states[-1]),
        "image.last_hidden_state": norm(image_states[-1]),
        "text.pooled": without(tower, "text_projection", run_text),
        "image.pooled": squeeze(image_pooled()),
        "image_features": image_features,
        "text_features": text_features,
        "image_embeds": image_embeds,
        "text_embeds": text_embeds,
        "logits_per_image": logits,
        "logit_scale": model.logit_scale.detach().clone(),
    }


def write(name, cfg, *, ids={}, weights=None, preprocess={}, half=False, keep=()):
    """Writes the folder, loads it with open_clip's factory, and asks both models for the same numbers.

    `ids`: arguments of `input_ids`. `weights`: the configuration that the weights are made with, where it is another than the
    folder's. `preprocess`: what `preprocess_cfg` says else. `half`: save f16; the numbers come from the rounded weights, in f32.
    """
    name = "open_clip_" + name
    folder = begin(name)
    model = build(weights or cfg)
    randomise(model, keep)
    tensors = {key: value.half() if half else value for key, value in model.state_dict().items()}
    save(tensors, folder / "open_clip_model.safetensors")
    size = cfg["vision_cfg"]["image_size"]
    preprocess_cfg = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD,
                  "interpolation": "bicubic", "resize_mode": "shortest", **preprocess}
    config = {"model_cfg": cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    TOKENIZER.save_pretrained(folder)

    inputs = input_ids(**ids), torch.randn(3, 3, size, size)
    again = open_clip.create_model(f"local-dir:{folder}").eval()
    expected = outputs(again, *inputs)
    if not weights and not half:
        for key, value in outputs(model.eval(), *inputs).items():
            assert torch.equal(value, expected[key]), f"{name}: {key} differs when loaded again"
    double = outputs(again.double(), inputs[0], inputs[1].double())
    check_double(name, expected, double, largest=5e-6)
    facts = {"model": type(again).__name__}
    if cfg["text_cfg"].get("hf_tokenizer_name"):
        tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
        facts |= {"sample_texts": SAMPLE_TEXTS, "sample_input_ids": tokenize(SAMPLE_TEXTS).tolist()}
    (folder / "golden.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n")
    sample_image().save(folder / "sample.png")
    transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")[2]
    expected["sample_pixel_values"] = transform(Image.open(folder / "sample.png")).unsqueeze(0)
    save({"input_ids": inputs[0], "pixel_values": inputs[1], **expected}, folder / "golden.safetensors")


# ------------------------------------------------------------------------------------------------------------- folders
@golden
def plain():
    write("plain", model_cfg(vision(width=24, patch_dropout=0.5), text(hf_tokenizer_name="here")))


@golden
def quickgelu():
    """A text tower that is its own module, as later files have it."""
    write("quickgelu", model_cfg(quick_gelu=True, custom_text=True))


@golden
def native_siglip():
    kwargs = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 0.02}}
    text_cfg = text(no_causal_mask=True, pool_type="last", proj_bias=True, hf_tokenizer_name="here",
                    tokenizer_kwargs={"clean": "canonicalize"}, **kwargs)
    cfg = model_cfg(vision(**kwargs), text_cfg, custom_text=True, init_logit_bias=-10, nonscalar_logit_scale=True)
    write("native_siglip", cfg, ids={"pad": 1}, preprocess={"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"})


@golden
def clipa():
    vision_cfg = vision(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True)
    preprocess = {"interpolation": "bilinear", "resize_mode": "squash"}
    write("clipa", model_cfg(vision_cfg, text(no_causal_mask=True, pool_type="last")), preprocess=preprocess)


@golden
def worldwide():
    write("worldwide", model_cfg(None, text(pool_type="eos", eos_id=2), custom_text=True), ids={"eos": 2, "pad": 1})


@golden
def layer_scale():
    """A bidirectional text tower that pools the first largest id, and layer scale with the mean of normed patches."""
    vision_cfg = vision(ls_init_value=1e-4, pool_type="avg")
    write("layer_scale", model_cfg(vision_cfg, text(no_causal_mask=True, ls_init_value=1e-4), custom_text=True))


def multimodal(**changes):
    return {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 8, "heads": 2, "layers": 1, "attn_pooler_heads": 2, **changes}


@golden
def coca():
    vision_cfg = vision(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=5, output_tokens=True)
    text_cfg = text(embed_cls=True, output_tokens=True)
    cfg = model_cfg(vision_cfg, text_cfg, multimodal_cfg=multimodal(), custom_text=True)
    write("coca", cfg)


@golden
def attentional_mean():
    vision_cfg = vision(attentional_pool=True, attn_pooler_heads=4, attn_pooler_queries=5, pool_type="avg")
    write("attentional_mean", model_cfg(vision_cfg, embed_dim=16))


@golden
def attentional_parallel():
    vision_cfg = vision(attentional_pool="parallel", attn_pooler_heads=4, attn_pooler_queries=5)
    write("attentional_parallel", model_cfg(vision_cfg, embed_dim=16))


@golden
def attentional_cascade():
    vision_cfg = vision(attentional_pool="cascade", attn_pooler_heads=4, attn_pooler_queries=5)
    write("attentional_cascade", model_cfg(vision_cfg, embed_dim=16))


@golden
def sin_cos():
    cfg = model_cfg(vision(pos_embed_type="sin_cos_2d"))
    write("sin_cos", cfg, keep=("visual.positional_embedding",))


@golden
def custom_block():
    options = {option: True for option in ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")}
    write("custom_block", model_cfg(vision(ls_init_value=1e-4, **options), text(**options)))


@golden
def resized():
    """The weights have a grid of 5×5, the configuration one of 3×3: open_clip resizes on loading."""
    write("resized", model_cfg(), weights=model_cfg(vision(image_size=20)))


@golden
def no_projection():
    text_cfg = text(width=12, proj_type="none", pool_type="first", no_causal_mask=True)
    write("no_projection", model_cfg(None, text_cfg, custom_text=True))


@golden
def siglip():
    """SigLIP as open_clip has it: timm's image tower (made small), the native text tower, nothing behind the one, a linear
    layer with a bias behind the other."""
    create = timm.create_model
    sizes = {"embed_dim": 24, "depth": 1, "patch_size": 4, "img_size": 12}
    timm.create_model = lambda name, **kwargs: create(name, **{**kwargs, **sizes})
    vision_cfg = {"image_size": 12, "timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": False,
                  "timm_pool": "map", "timm_proj": "none"}
    text_cfg = text(width=12, mlp_ratio=4, layers=2, no_causal_mask=True, pool_type="last", proj_bias=True,
                    hf_tokenizer_name="here", tokenizer_kwargs={"clean": "canonicalize"}, norm_kwargs={"eps": 1e-6})
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    write("siglip", model_cfg(vision_cfg, text_cfg, embed_dim=24, custom_text=True, init_logit_bias=-10), ids={"pad": 1},
          preprocess=preprocess)
    timm.create_model = create


@golden
def f16():
    write("f16", model_cfg(), half=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for wanted in sys.argv[1:] or MAKERS:
        MAKERS[wanted]()
    for folder in sorted(GOLDEN.glob("open_clip_*")):
        print(folder.name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")
