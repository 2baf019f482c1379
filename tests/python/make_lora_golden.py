"""A LoRA adapter made, run and saved by PEFT on the golden CLIP, in tests/golden/clip_lora.

Usage: python tests/python/make_lora_golden.py     (needs torch, transformers, peft)
       python tests/python/make_lora_golden.py --check DIR     (PEFT reads an adapter that this crate wrote; prints what it gives)
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def run(model, inputs):
    with torch.no_grad():
        out = model(input_ids=inputs["input_ids"].long(), attention_mask=inputs["attention_mask"].long(),
                    pixel_values=inputs["pixel_values"])
    return {"image_embeds": out.image_embeds, "text_embeds": out.text_embeds}


def main():
    model = CLIPModel.from_pretrained(GOLDEN / "clip", attn_implementation="eager").eval()
    inputs = load_file(GOLDEN / "clip" / "golden.safetensors")
    out = GOLDEN / "clip_lora"
    if sys.argv[1:2] == ["--check"]:
        adapted = PeftModel.from_pretrained(model, sys.argv[2]).eval()
        found, expected = run(adapted, inputs), load_file(out / "golden.safetensors")
        for name, value in found.items():
            error = ((value - expected[name]).abs().max() / expected[name].abs().max()).item()
            print(f"{name}: {error:.1e}")
            assert error < 2e-5
        return
    torch.manual_seed(3)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "fc1", "out_proj", "visual_projection"])
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    golden = run(adapted, inputs)
    adapted.peft_config["default"].base_model_name_or_path = "clip"
    adapted.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    # PEFT writes a set, in another order each time.
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"].sort()
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2))
    save_file({k: v.contiguous() for k, v in golden.items()}, out / "golden.safetensors")


if __name__ == "__main__":
    main()
