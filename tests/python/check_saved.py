"""Loads folders that this crate saved in transformers and in open_clip, and compares their features with the golden numbers.

    DIPTYCH_SAVED=/tmp/saved cargo test --release --test open_clip_saving --test model
    python tests/python/check_saved.py /tmp/saved

Each folder is called `<golden>.<how it was saved>`. Prints why where a package is missing, and fails on the first difference.
"""

import json
import sys
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TOLERANCE = 2e-5
# Without the queries that only a text decoder reads, open_clip does not load it; this crate does.
NOT_FOR_OPEN_CLIP = ("open_clip_attentional_parallel.as_loaded",)

try:
    import torch
    from safetensors.torch import load_file
except ImportError as missing:
    sys.exit(f"skipped: {missing}")


def open_clip_features(folder, golden):
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    ids = golden["input_ids"]
    context_length = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]["context_length"]
    ids = torch.nn.functional.pad(ids, (0, context_length - ids.shape[1]))  # open_clip takes full rows only
    with torch.no_grad():
        return model.encode_image(golden["pixel_values"]), model.encode_text(ids)


# A decoder and a cross-attention that embeddings do not read are not kept.
NOT_FOR_TRANSFORMERS = ("clipseg_decoder.as_loaded", "blip_model.as_loaded")


def blip_features(folder, golden, transformers):
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    text = {key: golden[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        images = model.vision_proj(model.vision_model(golden["pixel_values"]).last_hidden_state[:, 0])
        logits = model(pixel_values=golden["pixel_values"], **text).itm_score
        own = golden["match_logits"].diagonal().T
        assert (logits - own).abs().max() < TOLERANCE * golden["match_logits"].abs().max(), f"{folder.name}: matching"
        return images, model.text_proj(model.text_encoder(**text).last_hidden_state[:, 0])


def transformers_features(folder, golden):
    import transformers

    if "match_logits" in golden:
        return blip_features(folder, golden, transformers)
    model, loading = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    # The token of masked training is no part of the model.
    missing = [key for key in loading["missing_keys"] if not key.endswith("mask_token")]
    assert not (missing or loading["unexpected_keys"] or loading["mismatched_keys"]), loading
    inputs = {key: golden[key] for key in ("input_ids", "attention_mask") if key in golden}
    images = {key: golden[key] for key in ("pixel_values", "pixel_attention_mask", "spatial_shapes") if key in golden}
    with torch.no_grad():
        output = model.eval().get_image_features(**images), model.get_text_features(**inputs)
    return [getattr(features, "pooler_output", features) for features in output]


def is_smaller_than_its_name(folder):
    """Whether it is a golden folder with a tower that timm would build larger."""
    config = folder / "open_clip_config.json"
    return config.is_file() and "timm_model_name" in json.loads(config.read_text())["model_cfg"]["vision_cfg"]


def check(folder):
    golden = load_file(GOLDEN / folder.name.rpartition(".")[0] / "golden.safetensors")
    if (folder / "open_clip_config.json").is_file():
        features = open_clip_features(folder, golden)
    elif json.loads((folder / "config.json").read_text())["model_type"] == "diptych":
        return "our own layout"
    else:
        features = transformers_features(folder, golden)
    worst = 0.0
    for name, found in zip(("image_features", "text_features"), features):
        difference = (found.reshape(golden[name].shape) - golden[name]).abs().max() / golden[name].abs().max()
        worst = max(worst, difference.item())
    assert worst < TOLERANCE, f"{folder.name}: features differ by {worst:.1e}"
    return f"{worst:.1e}"


def main():
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir() and "." in path.name)
    assert folders, f"{sys.argv[1]} holds no folders"
    for folder in folders:
        if folder.name in NOT_FOR_OPEN_CLIP + NOT_FOR_TRANSFORMERS or is_smaller_than_its_name(folder):
            continue
        try:
            print(folder.name, check(folder))
        except ImportError as missing:
            print(folder.name, "skipped:", missing)


if __name__ == "__main__":
    main()
