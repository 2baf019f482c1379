"""Writes `tests/golden/<architecture>/`: tiny Hugging Face checkpoints and what the reference library computes with them.

Every folder is what `save_pretrained` writes (or, where its name says so, what older or other writers left on the hub),
with random weights in every tensor, plus

* `golden.safetensors`: `input_ids`, `attention_mask`, `pixel_values`, `text.*` and `image.*` (`hidden_states.{i}`,
  `last_hidden_state`, `pooled`), for dual encoders `image_features`, `text_features`, `image_embeds`, `text_embeds`,
  `logits_per_image`, `logit_scale`; `sample_pixel_values` is `sample.png` through the folder's image processor;
* `golden.json`: the class that computed it, and `sample_texts` with the ids that the folder's tokenizer gives.

`python make_golden.py [name…]` rewrites all folders, or those named; the same versions give the same bytes.
Written with transformers 5.23.0, torch 2.11.0 (CPU), tokenizers 0.23.3, Pillow 13.0.0.
"""

import json
import sys

import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from golden_folder import GOLDEN, begin, check_double, registry, save

CONTEXT = 16  # tokens; the third sample text is longer, so that truncation shows
SAMPLE_TEXTS = ["a photo of a cat", "Two DOGS, on the  grass!", "the quick brown fox jumps over the lazy dog", "café 7"]
WORDS = ["photo", "of", "cat", "dog", "the", "two", "on"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MAKERS, golden = registry()


# ---------------------------------------------------------------------------------------------------- configurations
def text_size(vocab_size, **changes):
    return {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
            "vocab_size": vocab_size, **changes}


def vision_size(**changes):
    return {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 56,
            "image_size": 8, "patch_size": 4, **changes}


def bert_config(**changes):
    return tf.BertConfig(**text_size(len(bert_tokenizer()), max_position_embeddings=CONTEXT, **changes))


def roberta_config(**changes):
    # eps as in the published files; two positions more than tokens, as padding_idx + 1 is the first one used
    changes = {"layer_norm_eps": 1e-5, "type_vocab_size": 1, "max_position_embeddings": CONTEXT + 2, **changes}
    return tf.RobertaConfig(**text_size(len(roberta_tokenizer()), **changes))


def xlmr_config(**changes):
    changes = {"layer_norm_eps": 1e-5, "type_vocab_size": 1, "max_position_embeddings": CONTEXT + 2, **changes}
    return tf.XLMRobertaConfig(**text_size(len(xlmr_tokenizer()), **changes))


def clip_text_size(**changes):
    tokenizer = clip_tokenizer()  # three ids lie above the EOS, as tokens added later do
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    return text_size(len(tokenizer) + 3, max_position_embeddings=CONTEXT, **{"projection_dim": 12, **ids, **changes})


def clip_vision_size(**changes):
    return vision_size(**{"projection_dim": 12, **changes})


def clip_config():
    return tf.CLIPConfig(text_config=clip_text_size(), vision_config=clip_vision_size(), projection_dim=12)


# -------------------------------------------------------------------------------------------- tokenizers, processors
def word_merges(words, end=""):
    """Merges that build each word from its letters, from the left; and the pieces they give."""
    merges, pieces = [], []
    for word in words:
        letters = list(word[:-1]) + [word[-1] + end]
        for i in range(1, len(letters)):
            pair = ("".join(letters[:i]), letters[i])
            if pair not in merges:
                merges.append(pair)
                pieces.append("".join(pair))
    return merges, pieces


def bert_tokenizer():
    pieces = list(LETTERS) + ["##" + letter for letter in LETTERS[:36]] + WORDS + ["grass"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + pieces
    return tf.BertTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, model_max_length=CONTEXT)


def roberta_tokenizer():
    merges, pieces = word_merges(["Ġ" + word for word in WORDS])
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces, "<mask>"]
    vocab = {piece: i for i, piece in enumerate(vocab)}
    return tf.RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def xlmr_tokenizer():
    pieces = ["▁"] + list(LETTERS) + ["D", "O", "G", "S", "T", "é"] + ["▁" + word for word in WORDS + ["a"]]
    scores = [(piece, -1.0 - 0.01 * i - (0.0 if len(piece) > 1 else 2.0)) for i, piece in enumerate(pieces)]
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scores, ("<mask>", 0.0)]
    return tf.XLMRobertaTokenizer(vocab=vocab, model_max_length=CONTEXT)


def clip_tokenizer():
    letters = LETTERS + "Ã©"  # the two bytes of "é" in the byte-level alphabet
    merges, pieces = word_merges(WORDS, end="</w>")
    vocab = [*letters, *(letter + "</w>" for letter in letters), *pieces, "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(vocab)}
    return tf.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def clip_processor():
    return tf.CLIPImageProcessorPil(size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8})


def vit_processor():
    return tf.ViTImageProcessorPil(size={"height": 8, "width": 8})


def deit_processor():
    return tf.DeiTImageProcessorPil(size={"height": 10, "width": 10}, crop_size={"height": 8, "width": 8},
                                    image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)


def dinov2_processor():
    return tf.BitImageProcessorPil(size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8}, resample=3,
                                   image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)


class OldClipProcessor:
    """The `preprocessor_config.json` that transformers 4.0 to 4.20 wrote for CLIP: sizes are numbers."""

    def save_pretrained(self, folder):
        config = {"crop_size": 8, "do_center_crop": True, "do_normalize": True, "do_resize": True,
                  "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
                  "resample": 3, "size": 10}
        (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------- weights and inputs
def randomise(model):
    """Gives every parameter random values: activations stay lively, and a swapped or missing term shows."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if name.endswith("logit_scale"):
            value = 1.5 + 0.2 * noise
        elif "lambda1" in name or (parameter.ndim == 1 and name.endswith("weight")):  # layer scale, norm weights
            value = 1.0 + 0.3 * noise
        elif parameter.ndim == 1:
            value = 0.3 * noise
        elif "embedding" in name and "projection" not in name and "patch" not in name or "token" in name:
            value = 0.5 * noise
        else:
            value = noise * 1.2 / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)


def bert_like_inputs(tokenizer):
    first, last, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    return text_inputs([9, 5, 7], first, last, pad, range(5, len(tokenizer) - 1))


def clip_inputs(config):
    """Rows end with the EOS and are padded with it. One row holds ids by which a wrong pooling rule is caught."""
    tokenizer = clip_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    inputs = text_inputs([12, 6, 9], bos, eos, eos, range(3, bos))
    inputs["input_ids"][2, 4] = 2 if config.eos_token_id == 2 else eos + 2
    return inputs


def text_inputs(lengths, first, last, pad, ids):
    rows = torch.full((len(lengths), max(lengths)), pad, dtype=torch.int64)
    mask = torch.zeros_like(rows)
    for row, length in enumerate(lengths):
        rows[row, 0], rows[row, length - 1], mask[row, :length] = first, last, 1
        rows[row, 1 : length - 1] = torch.randint(ids.start, ids.stop, (length - 2,))
    return {"input_ids": rows, "attention_mask": mask}


def sample_image():
    """A small picture with slopes, an edge and grain."""
    y, x = np.mgrid[0:19, 0:29]
    picture = np.stack([9 * x, 13 * y, 255 - 5 * x - 4 * y], axis=-1) + np.random.default_rng(7).integers(-20, 20, (19, 29, 3))
    picture[5:12, 8:17] = 255 - picture[5:12, 8:17]
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------- the reference
def tower_outputs(prefix, output, pooled):
    states = {f"{prefix}.hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
    return {**states, f"{prefix}.last_hidden_state": output.last_hidden_state, f"{prefix}.pooled": pooled}


def text_outputs(model, inputs, dual):
    output = model(**inputs, output_hidden_states=True)
    if dual or "clip" in model.config.model_type:
        pooled = output.pooler_output
    else:  # a BERT-like tower alone: the mean of the tokens that are not padding
        mask = inputs["attention_mask"].unsqueeze(-1).to(output.last_hidden_state)
        pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
    return tower_outputs("text", output, pooled)


def image_outputs(model, inputs):
    output = model(**inputs, output_hidden_states=True)
    pooled = output.pooler_output if output.pooler_output is not None else output.last_hidden_state[:, 0]
    return tower_outputs("image", output, pooled)


@torch.no_grad()
def outputs(model, text, image):
    """What the golden file holds, by the reference's own forward passes."""
    kind = type(model).__name__
    base = getattr(model, model.base_model_prefix, model)
    if text and image:
        output = model(**text, **image)
        return {
            **text_outputs(model.text_model, text, dual=True),
            **image_outputs(model.vision_model, image),
            "text_features": model.get_text_features(**text).pooler_output,
            "image_features": model.get_image_features(**image).pooler_output,
            "text_embeds": output.text_embeds,
            "image_embeds": output.image_embeds,
            "logits_per_image": output.logits_per_image,
            "logit_scale": model.logit_scale.detach(),
        }
    result = text_outputs(base, text, dual=False) if text else image_outputs(base, image)
    if "ForImageClassification" in kind:
        result["image.pooled"] = model(**image).logits
    elif kind == "CLIPTextModelWithProjection":
        result["text_features"] = model(**text).text_embeds  # the reference's name; it is not normalised
    elif kind == "CLIPVisionModelWithProjection":
        result["image_features"] = model(**image).image_embeds
    return result


def write(model, *, name, tokenizer=None, processor=None, combined=None, rename=None, image_size=(8, 8),
          interpolate=False, half=False, load={}, **save):
    """Writes the folder `name`, loads it again, and asks both models for the same numbers.

    `combined`: a processor class that saves tokenizer and image processor together. `rename`: from the tensors as saved
    to the tensors as this folder shall hold them. `half`: save f16; the numbers come from the rounded weights, in f32.
    `load`: arguments to read it back. `save`: arguments to write it.
    """
    folder = begin(name)
    randomise(model)
    if half:
        model.half()
    model.save_pretrained(folder, **save)
    if rename:
        save_file(rename(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    if combined:
        combined(processor, tokenizer).save_pretrained(folder)
    else:
        for part in filter(None, (tokenizer, processor)):
            part.save_pretrained(folder)

    text = image = {}
    if tokenizer:
        is_clip = isinstance(tokenizer, tf.CLIPTokenizer)
        config = model.config.get_text_config()
        text = clip_inputs(config) if is_clip else bert_like_inputs(tokenizer)
    if processor:
        image = {"pixel_values": torch.randn(3, 3, *image_size)}
    flag = {"interpolate_pos_encoding": True} if interpolate else {}
    model = prepared(model)
    expected = outputs(model, text, {**image, **flag} if image else {})
    again = prepared(type(model).from_pretrained(folder, dtype=torch.float32, **load))
    check_equal(name, expected, outputs(again, text, {**image, **flag} if image else {}))
    check_double(name, expected, outputs(again.double(), text, {**doubled(image), **flag} if image else {}))

    facts = {"model": type(model).__name__}
    if tokenizer:
        facts |= sample_ids(tf.AutoTokenizer.from_pretrained(folder))
    if processor:
        sample_image().save(folder / "sample.png")
        reference = tf.AutoImageProcessor.from_pretrained(folder, backend="pil")
        assert reference.backend == "pil", type(reference)
        expected["sample_pixel_values"] = reference(Image.open(folder / "sample.png"), return_tensors="pt").pixel_values
        facts["image_processor"] = type(reference).__name__
    save({**text, **image, **expected}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")


def prepared(model):
    model.set_attn_implementation("eager")
    return model.float().eval()


def doubled(image):
    return {key: value.double() for key, value in image.items()}


def sample_ids(tokenizer):
    batch = tokenizer(SAMPLE_TEXTS, padding=True, truncation=True)
    return {"sample_texts": SAMPLE_TEXTS, "sample_input_ids": batch["input_ids"],
            "sample_attention_mask": batch["attention_mask"], "max_length": tokenizer.model_max_length}


def check_equal(name, expected, found):
    for key, value in expected.items():
        assert torch.isfinite(value).all() and torch.equal(value, found[key]), f"{name}: {key} differs when loaded again"


# --------------------------------------------------------------------------------------------------------- text towers
@golden
def bert():
    write(tf.BertModel(bert_config()), name="bert", tokenizer=bert_tokenizer())


@golden
def bert_mlm():
    write(tf.BertForMaskedLM(bert_config(layer_norm_eps=0.03)), name="bert_mlm", tokenizer=bert_tokenizer())


@golden
def bert_gamma():
    """As the first BERT files: gamma and beta, the prefix, the pooler, pre-training heads, and a position buffer."""
    def rename(tensors):
        for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            tensors = {key.replace(new, old): value for key, value in tensors.items()}
        return {**tensors, "bert.embeddings.position_ids": torch.arange(CONTEXT).unsqueeze(0)}

    write(tf.BertForPreTraining(bert_config()), name="bert_gamma", tokenizer=bert_tokenizer(), rename=rename)


@golden
def roberta():
    write(tf.RobertaForMaskedLM(roberta_config()), name="roberta", tokenizer=roberta_tokenizer())


@golden
def xlm_roberta():
    model = tf.XLMRobertaModel(xlmr_config(), add_pooling_layer=False)
    write(model, name="xlm_roberta", tokenizer=xlmr_tokenizer(), load={"add_pooling_layer": False})


# -------------------------------------------------------------------------------------------------------- image towers
@golden
def vit():
    write(tf.ViTModel(tf.ViTConfig(**vision_size())), name="vit", processor=vit_processor())


@golden
def vit_nopool():
    config = tf.ViTConfig(**vision_size(qkv_bias=False, layer_norm_eps=0.02))
    model = tf.ViTModel(config, add_pooling_layer=False)
    write(model, name="vit_nopool", processor=vit_processor(), load={"add_pooling_layer": False})


@golden
def vit_cls():
    model = tf.ViTForImageClassification(tf.ViTConfig(**vision_size(num_labels=7)))
    write(model, name="vit_cls", processor=vit_processor())


@golden
def vit_v5names():
    model = tf.ViTModel(tf.ViTConfig(**vision_size()))
    write(model, name="vit_v5names", processor=vit_processor(), save_original_format=False)


@golden
def vit_interp():
    model = tf.ViTModel(tf.ViTConfig(**vision_size(image_size=16)))
    write(model, name="vit_interp", processor=vit_processor(), image_size=(12, 20), interpolate=True)


@golden
def deit():
    write(tf.DeiTModel(tf.DeiTConfig(**vision_size())), name="deit", processor=deit_processor())


@golden
def deit_cls():
    model = tf.DeiTForImageClassification(tf.DeiTConfig(**vision_size(num_labels=7)))
    write(model, name="deit_cls", processor=deit_processor())


@golden
def deit_teacher():
    model = tf.DeiTForImageClassificationWithTeacher(tf.DeiTConfig(**vision_size(num_labels=7)))
    write(model, name="deit_teacher", processor=deit_processor())


def dinov2_config(**changes):
    size = vision_size(mlp_ratio=2, **changes)
    del size["intermediate_size"]  # DINOv2 has mlp_ratio instead
    return tf.Dinov2Config(**size)


@golden
def dinov2():
    write(tf.Dinov2Model(dinov2_config()), name="dinov2", processor=dinov2_processor())


@golden
def dinov2_swiglu():
    config = dinov2_config(use_swiglu_ffn=True, layer_norm_eps=0.02)
    write(tf.Dinov2Model(config), name="dinov2_swiglu", processor=dinov2_processor())


@golden
def dinov2_interp():
    model = tf.Dinov2Model(dinov2_config(image_size=16))
    write(model, name="dinov2_interp", processor=dinov2_processor(), image_size=(12, 20))


# ---------------------------------------------------------------------------------------------------------------- CLIP
def write_clip(name, model=None, **options):
    model = model or tf.CLIPModel(clip_config())
    write(model, name=name, **{"tokenizer": clip_tokenizer(), "processor": clip_processor(), **options})


def with_prefix(prefix):
    """Tensor names and the position buffer as transformers 4 wrote them for a tower of CLIP."""
    def rename(tensors):
        positions = tensors["embeddings.position_embedding.weight"].shape[0]
        tensors["embeddings.position_ids"] = torch.arange(positions).unsqueeze(0)
        return {prefix + key: value for key, value in tensors.items()}

    return rename


@golden
def clip():
    write_clip("clip")


@golden
def clip_gelu_eos2():
    """The text config of OpenAI's old files: its eos_token_id says 2, so the pooled token is the first largest id."""
    text = clip_text_size(hidden_act="gelu", bos_token_id=0, eos_token_id=2, layer_norm_eps=0.05)
    vision = clip_vision_size(hidden_act="gelu", hidden_size=32, num_attention_heads=4, image_size=16, layer_norm_eps=0.02)
    model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    write_clip("clip_gelu_eos2", model, image_size=(16, 16))


@golden
def clip_f16():
    write_clip("clip_f16", half=True)


@golden
def clip_sharded():
    write_clip("clip_sharded", max_shard_size="40KB")


@golden
def processor_v5():
    write_clip("processor_v5", combined=tf.CLIPProcessor)


@golden
def clip_vision_v4():
    model = tf.CLIPVisionModel(tf.CLIPVisionConfig(**clip_vision_size()))
    rename = with_prefix("vision_model.")
    write_clip("clip_vision_v4", model, tokenizer=None, processor=OldClipProcessor(), rename=rename)


@golden
def clip_text_v4():
    model = tf.CLIPTextModel(tf.CLIPTextConfig(**clip_text_size()))
    write_clip("clip_text_v4", model, processor=None, rename=with_prefix("text_model."))


@golden
def clip_vision():
    """Tensor names as transformers 5 writes them for a vision tower alone: without a prefix."""
    write_clip("clip_vision", tf.CLIPVisionModel(tf.CLIPVisionConfig(**clip_vision_size())), tokenizer=None)


@golden
def clip_vision_projection():
    model = tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(**clip_vision_size()))
    write_clip("clip_vision_projection", model, tokenizer=None)


@golden
def clip_text_projection():
    model = tf.CLIPTextModelWithProjection(tf.CLIPTextConfig(**clip_text_size()))
    write_clip("clip_text_projection", model, processor=None)


# ------------------------------------------------------------------------------------------ VisionTextDualEncoderModel
def dual(vision, text):
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(vision.config, text.config, projection_dim=12)
    return tf.VisionTextDualEncoderModel(config)


@golden
def vtde_vit_bert():
    model = dual(tf.ViTModel(tf.ViTConfig(**vision_size())), tf.BertModel(bert_config()))
    write(model, name="vtde_vit_bert", tokenizer=bert_tokenizer(), processor=vit_processor())


def clip_roberta():
    return dual(tf.CLIPVisionModel(tf.CLIPVisionConfig(**clip_vision_size())), tf.RobertaModel(roberta_config()))


@golden
def vtde_clip_roberta():
    write(clip_roberta(), name="vtde_clip_roberta", tokenizer=roberta_tokenizer(), processor=clip_processor())


@golden
def vtde_clip_v4():
    """transformers 4 had one more module level in CLIP's vision tower."""
    def rename(tensors):
        prefix = "vision_model."
        tensors = {prefix + key if key.startswith(prefix) else key: value for key, value in tensors.items()}
        positions = tensors[prefix + prefix + "embeddings.position_embedding.weight"].shape[0]
        return {**tensors, prefix + prefix + "embeddings.position_ids": torch.arange(positions).unsqueeze(0)}

    write(clip_roberta(), name="vtde_clip_v4", tokenizer=roberta_tokenizer(), processor=OldClipProcessor(), rename=rename)


@golden
def vtde_dinov2_xlmr():
    model = dual(tf.Dinov2Model(dinov2_config()), tf.XLMRobertaModel(xlmr_config()))
    write(model, name="vtde_dinov2_xlmr", tokenizer=xlmr_tokenizer(), processor=dinov2_processor(),
          combined=tf.VisionTextDualEncoderProcessor)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for wanted in sys.argv[1:] or MAKERS:
        MAKERS[wanted]()
        print(wanted, sum(file.stat().st_size for file in (GOLDEN / wanted).iterdir()), "bytes")
