"""Writes `tests/golden/oc_rn*/`, `oc_convnext*/`, `oc_fastvit*/`: tiny open_clip checkpoints with convolutional image towers.

Each folder is a published configuration of open_clip, cut down (narrow, shallow, small images), with random values in every
tensor: `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer's files, and `golden.safetensors` with
`input_ids`, `attention_mask`, `pixel_values`, `image.*` (`hidden_states.{i}`: the stem's map and each stage's, as tokens;
`last_hidden_state`: the last map as tokens; `pooled`), `text.*`, `image_features`, `text_features`, `image_embeds`,
`text_embeds`, `logits_per_image`, and `image.gradient_sums`: for each of the image tower's parameters that
`golden.json` names, the sum of its gradient by uneven weights, of a loss that weighs the pooled rows unevenly.

`python make_open_clip_conv_golden.py [name…]` rewrites all folders, or those named; the same versions give the same bytes.
Written with open_clip 3.3.0, timm 1.0.31, torch 2.11.0 (CPU).
"""

import json
import sys

import timm
import torch

from golden_folder import begin, check_double, check_size, registry, save
from open_clip_timm import build, inputs, published, randomise, save_config

MAKERS, golden = registry()  # functions that give the arguments of `write`


# -------------------------------------------------------------------------------------------------------------- towers
@golden
def oc_rn():
    return dict(model="RN50-quickgelu", pixels=(64, 64), vision=dict(width=2, head_width=16, layers=[1, 2, 1, 1]))


@golden
def oc_rn_odd():  # maps with odd sides, one place in the last; the stem's convolutions see more than one channel
    return dict(model="RN101", pixels=(36, 36), half=True, vision=dict(width=4, head_width=32, layers=[1, 1, 2, 1]))


@golden
def oc_convnext():
    return dict(model="convnext_base_w", pixels=(48, 48), trunk=dict(dims=(6, 8, 12, 16), depths=(1, 2, 1, 1)))


@golden
def oc_convnext_xxlarge():  # ε of 1e-5; an MLP as projection
    return dict(model="convnext_xxlarge", pixels=(40, 70), vision=dict(timm_proj="mlp"), small=0.003,
                trunk=dict(dims=(8, 12, 8, 24), depths=(1, 1, 2, 1)))


FIRST = dict(embed_dims=(4, 8, 16, 32), layers=(1, 2, 1, 1), mlp_ratios=(2, 2, 2, 1.5))
SECOND = dict(embed_dims=(4, 8, 8, 32, 64), layers=(1, 1, 1, 1, 1), mlp_ratios=(2, 2, 2, 1, 1))


@golden
def oc_fastvit():
    return dict(model="MobileCLIP-S1", pixels=(48, 48), trunk=FIRST)


@golden
def oc_fastvit_two_heads():
    return dict(model="MobileCLIP2-S2", pixels=(36, 50), half=True, trunk={**FIRST, "embed_dims": (4, 8, 8, 64)})


@golden
def oc_fastvit_fused():  # as `timm.utils.reparameterize_model` leaves it
    return dict(model="MobileCLIP2-S0", pixels=(48, 48), trunk=FIRST, fused=True)


@golden
def oc_fastvit_second():  # one row of two places in the last stage
    return dict(model="MobileCLIP2-S3", pixels=(36, 68), half=True, trunk=SECOND)


@golden
def oc_fastvit_second_fused():
    return dict(model="MobileCLIP2-S4", pixels=(36, 68), half=True, trunk=SECOND, fused=True)


def special(small):
    """For `open_clip_timm.randomise`. `small`: how large the activations of the first convolution are."""
    def change(name, noise):
        if "stem.0.weight" in name and small:  # activations near the norm's ε
            return noise * small / noise[0].numel() ** 0.5
        if "stem.0.bias" in name and small:
            return noise * small
        if ".se.fc1.bias" in name:  # most of these units live
            return 0.5 + 0.3 * noise
    return change


# ------------------------------------------------------------------------------------------------------- the reference
def features(visual, pixels):
    """The stem's map, each stage's, the last map, and the pooled rows."""
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        stages = [trunk.stem, *trunk.stages]
        found = hooked(stages, lambda: trunk.forward_features(pixels))
        last = trunk.forward_features(pixels)
        return found, last, trunk.forward_head(last, pre_logits=True)
    found = hooked([visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4], lambda: visual(pixels))
    return found, found[-1], visual(pixels)


def hooked(modules, run):
    """What the modules give while `run` runs."""
    found = []
    hooks = [module.register_forward_hook(lambda _, args, output: found.append(output)) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return found


def tokens(features):
    return features.flatten(2).transpose(1, 2)


@torch.no_grad()
def outputs(model, text, pixels):
    ids = text["input_ids"]
    states, last, pooled = features(model.visual, pixels)
    tower = getattr(model, "text", model)
    blocks = list(tower.transformer.resblocks)
    inner = []
    hook = blocks[0].register_forward_pre_hook(lambda _, args: inner.append(args[0]))
    inner += hooked([*blocks, tower.ln_final], lambda: model.encode_text(ids))
    hook.remove()
    image, words = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    return {
        **{f"image.hidden_states.{i}": tokens(state) for i, state in enumerate(states)},
        "image.last_hidden_state": tokens(last), "image.pooled": pooled,
        **{f"text.hidden_states.{i}": state for i, state in enumerate(inner[:-1])},
        "text.last_hidden_state": inner[-1], "text.pooled": inner[-1][torch.arange(len(ids)), ids.argmax(-1)],
        "image_features": model.encode_image(pixels), "text_features": model.encode_text(ids),
        "image_embeds": image, "text_embeds": words,
        "logits_per_image": model.logit_scale.exp() * image @ words.T,
        "logit_scale": model.logit_scale.detach(),
    }


def uneven(shape):
    """Weights that no symmetry cancels."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) * 37 + 11) % 23).double() / 7 - 1.4).reshape(shape)


def gradient_sums(visual, pixels):
    """For each parameter of the tower without the projection behind it, the uneven sum of its gradient."""
    pooled = features(visual, pixels)[2]
    (pooled * uneven(pooled.shape)).sum().backward()
    prefix = "trunk." if hasattr(visual, "trunk") else ""
    named = {name.removeprefix(prefix): parameter for name, parameter in visual.named_parameters()
             if name.startswith(prefix) and parameter.grad is not None}
    sums = {name: (parameter.grad * uneven(parameter.shape)).sum() for name, parameter in named.items()}
    return list(sums), torch.stack(list(sums.values()))


def write(name, model, pixels, vision=None, trunk=None, fused=False, half=False, small=None):
    """Writes the folder `name`: the shipped configuration `model` with a tower of `trunk`'s sizes."""
    folder = begin(name)
    vision = {"image_size": max(pixels), **(vision or {})}
    config = published(model, vision, keep=["no_causal_mask"])
    built = build(config, lambda create, name, **kwargs: create(name, **{**(trunk or {}), **kwargs}))
    randomise(built, special(small))
    built.eval()
    if fused:
        built.visual.trunk = timm.utils.reparameterize_model(built.visual.trunk)
        for parameter in built.parameters():
            parameter.requires_grad_(True)
    if half:
        built.half().float()
    state = built.state_dict()
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save(state, folder / "open_clip_model.safetensors", {"format": "pt"})
    save_config(folder, config)

    words, images = inputs(*pixels)
    expected = outputs(built, words, images)
    built.double()
    check_double(name, expected, outputs(built, words, images.double()), largest=5e-6)
    names, expected["image.gradient_sums"] = gradient_sums(built.visual, images.double())
    expected["image.gradient_sums"] = expected["image.gradient_sums"].float()
    save({**words, "pixel_values": images, **expected}, folder / "golden.safetensors")
    kind = type(built.visual.trunk if hasattr(built.visual, "trunk") else built.visual).__name__
    facts = {"model": type(built).__name__, "tower": kind, "gradients": names}
    (folder / "golden.json").write_text(json.dumps(facts, indent=0) + "\n")
    print(name, kind, check_size(folder), "bytes", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for wanted in sys.argv[1:] or MAKERS:
        write(wanted, **MAKERS[wanted]())
