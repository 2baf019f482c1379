"""Writes the golden folders of the Hugging Face families beyond CLIP, ViT and BERT, in the form of `make_golden.py`.

Three more things may be in `golden.safetensors`:
* NaFlex: `pixel_values` are flattened patches (B,N,p·p·C), with `pixel_attention_mask` and `spatial_shapes`; `sample_patches`
  is `sample.png` through the folder's processor;
* SigLIP: no `attention_mask`, as its published tokenizers name `input_ids` alone; `logit_bias`;
* BLIP: `match_logits`, the matching head's two numbers for image i and text i.

`python make_hf_golden.py [name…]` rewrites all folders, or those named. Versions as in `make_golden.py`.
"""

import json
import sys

import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file

import make_golden as base
from golden_folder import GOLDEN, begin, check_double, registry, save
from make_golden import CONTEXT, LETTERS, SAMPLE_TEXTS, WORDS, text_size, vision_size

MAKERS, golden = registry()


# -------------------------------------------------------------------------------------------- tokenizers, processors
def gemma_tokenizer():
    """SigLIP 2's, as its published files set it: padded on the right, without a mask, lower-cased."""
    merges, pieces = base.word_merges(["▁" + word for word in WORDS])
    letters = ["▁", *LETTERS, "é"]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab = {piece: i for i, piece in enumerate([*specials, *(f"<0x{i:02X}>" for i in range(256)), *letters, *pieces])}
    return tf.Siglip2Tokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT, padding_side="right",
                               model_input_names=["input_ids"])


def siglip_processor():
    return tf.SiglipImageProcessorPil(size={"height": 8, "width": 8})


def naflex_processor():
    return tf.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=12)


def chinese_processor():
    return tf.ChineseCLIPImageProcessorPil(size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8},
                                           do_center_crop=False)


def blip_processor():
    return tf.BlipImageProcessorPil(size={"height": 8, "width": 8})


# ------------------------------------------------------------------------------------------------------------- inputs
def full_rows(tokenizer, first=None):
    """Rows as long as the context: text, the end token, padding; no mask."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    lengths = [9, 5, CONTEXT]
    ids = torch.full((len(lengths), CONTEXT), pad, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(5, len(tokenizer), (length - 1,))
        ids[row, length - 1] = eos
        if first is not None:
            ids[row, 0] = first
    return {"input_ids": ids}


def bert_rows(tokenizer):
    return base.bert_like_inputs(tokenizer)


def eos_rows(tokenizer):
    """Padded rows that begin and end with the tokenizer's tokens; one row holds larger ids than its end token's."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return base.text_inputs([12, 6, 9], bos, eos, pad, range(5, len(tokenizer) - 1))


def pixels(*size):
    return {"pixel_values": torch.randn(3, 3, *size)}


def patches(model):
    """Three images of different shapes; the first has more rows than columns, the second fills all places."""
    config = model.config
    config = getattr(config, "vision_config", config)
    shapes = torch.tensor([[4, 2], [3, 4], [1, 5]])
    mask = torch.stack([torch.arange(12) < rows * columns for rows, columns in shapes.tolist()]).long()
    values = torch.randn(3, 12, 3 * config.patch_size**2) * mask.unsqueeze(-1)
    return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}


# ------------------------------------------------------------------------------------------------------ the reference
def pooled(output):
    """What the reference pools; a tower that pools nothing gives its class token, or, without one, its mean."""
    return output.pooler_output


@torch.no_grad()
def tower(prefix, model, inputs, pool=pooled):
    output = model(**inputs, output_hidden_states=True)
    return base.tower_outputs(prefix, output, pool(output))


def cls(output):
    return output.last_hidden_state[:, 0]


def mean(output):
    return output.last_hidden_state.mean(1)


@torch.no_grad()
def dual(model, text, image, text_pool=pooled, image_pool=pooled):
    model = getattr(model, "clip", model)  # CLIPSeg's half
    output = model(**text, **image)
    extra = {"logit_bias": model.logit_bias.detach()} if hasattr(model, "logit_bias") else {}
    return {
        **tower("text", model.text_model, text, text_pool),
        **tower("image", model.vision_model, image, image_pool),
        "text_features": model.get_text_features(**text).pooler_output,
        "image_features": model.get_image_features(**image).pooler_output,
        "text_embeds": output.text_embeds,
        "image_embeds": output.image_embeds,
        "logits_per_image": output.logits_per_image,
        "logit_scale": model.logit_scale.detach(),
        **extra,
    }


@torch.no_grad()
def blip_retrieval(model, text, image):
    vision = model.vision_model(**image)
    words = model.text_encoder(**text)
    image_features = model.vision_proj(vision.last_hidden_state[:, 0])
    text_features = model.text_proj(words.last_hidden_state[:, 0])
    # Each image with each text: the reference takes as many of one as of the other.
    scores = []
    for i in range(len(image["pixel_values"])):
        same = {key: value[i : i + 1].expand(len(text["input_ids"]), *value.shape[1:]) for key, value in image.items()
                if key == "pixel_values"}
        rest = {key: value for key, value in image.items() if key != "pixel_values"}
        scores.append(model(**text, **same, **rest, use_itm_head=True).itm_score)
    return {
        **tower("text", model.text_encoder, text, cls),
        **tower("image", model.vision_model, image, cls),
        "text_features": text_features,
        "image_features": image_features,
        "text_embeds": torch.nn.functional.normalize(text_features, dim=-1),
        "image_embeds": torch.nn.functional.normalize(image_features, dim=-1),
        "logits_per_image": model(**text, **image, use_itm_head=False).itm_score,
        "match_logits": torch.stack(scores),
    }


def one(prefix, pool=pooled):
    """The outputs of a tower alone."""
    return lambda model, text, image: tower(prefix, model, text or image, pool)


# ------------------------------------------------------------------------------------------------------------- writing
def write(name, model, outputs, *, text=None, image=None, tokenizer=None, processor=None, rename=None, config=None,
          change=None, flags={}, load={}, **save):
    """As `make_golden.write`: `text` and `image` are functions that draw inputs, `outputs` asks the reference, `change` sets
    weights, `config` changes the `config.json` as written, `flags` are further arguments of the vision tower."""
    folder = begin(name)
    base.randomise(model)
    if change:
        change(model)
    model.save_pretrained(folder, **save)
    if rename:
        save_file(rename(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    if config:
        fields = json.loads((folder / "config.json").read_text())
        config(fields)
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    for part in filter(None, (tokenizer, processor)):
        part.save_pretrained(folder)
    text, image = text() if text else {}, image() if image else {}
    model = base.prepared(model)
    expected = outputs(model, text, {**image, **flags} if image else {})
    again = base.prepared(type(model).from_pretrained(folder, dtype=torch.float32, **load))
    base.check_equal(name, expected, outputs(again, text, {**image, **flags} if image else {}))
    double = {key: value.double() if value.is_floating_point() else value for key, value in image.items()}
    check_double(name, expected, outputs(again.double(), text, {**double, **flags} if image else {}))

    facts = {"model": type(model).__name__}
    if tokenizer:
        facts |= sample_ids(tf.AutoTokenizer.from_pretrained(folder), full=text.keys() == {"input_ids"})
    if processor:
        base.sample_image().save(folder / "sample.png")
        reference = tf.AutoImageProcessor.from_pretrained(folder, backend="pil")
        assert reference.backend == "pil", type(reference)
        found = reference(Image.open(folder / "sample.png"), return_tensors="pt")
        name = "sample_patches" if "spatial_shapes" in found else "sample_pixel_values"
        expected[name] = found.pixel_values
        if "spatial_shapes" in found:
            expected |= {"sample_mask": found.pixel_attention_mask, "sample_shapes": found.spatial_shapes}
        facts["image_processor"] = type(reference).__name__
    save({**text, **image, **expected}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")


def sample_ids(tokenizer, full):
    batch = tokenizer(SAMPLE_TEXTS, padding="max_length" if full else True, truncation=True)
    mask = {"sample_attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
    return {"sample_texts": SAMPLE_TEXTS, "sample_input_ids": batch["input_ids"], **mask,
            "max_length": tokenizer.model_max_length}


def prefixed(prefix):
    return lambda tensors: {prefix + key: value for key, value in tensors.items()}


# -------------------------------------------------------------------------------------------------------------- SigLIP
def siglip_text(tokenizer, **changes):
    return text_size(len(tokenizer), max_position_embeddings=CONTEXT,
                     **{"projection_size": 24, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, **changes})


def siglip_vision(**changes):
    return vision_size(**changes)


@golden
def siglip():
    """The text head widens 16 to the images' 24, as in the published giant."""
    tokenizer = gemma_tokenizer()
    config = tf.SiglipConfig(text_config=siglip_text(tokenizer), vision_config=siglip_vision())
    write("siglip", tf.SiglipModel(config), dual, tokenizer=tokenizer, processor=siglip_processor(),
          text=lambda: full_rows(tokenizer), image=lambda: pixels(8, 8))


@golden
def siglip_published():
    """The configuration as the published files have it: what the classes have as defaults is left out."""
    tokenizer = gemma_tokenizer()
    text = siglip_text(tokenizer, projection_size=None, hidden_size=24, num_attention_heads=2)
    config = tf.SiglipConfig(text_config=text, vision_config=siglip_vision(layer_norm_eps=0.02, num_attention_heads=2))

    def thin(fields):
        text, vision = fields["text_config"], fields["vision_config"]
        keep = {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "image_size",
                "patch_size", "max_position_embeddings", "layer_norm_eps", "model_type"}
        fields["text_config"] = {key: value for key, value in text.items() if key in keep}
        fields["vision_config"] = {key: value for key, value in vision.items() if key in keep}

    write("siglip_published", tf.SiglipModel(config), dual, tokenizer=tokenizer, processor=siglip_processor(),
          text=lambda: full_rows(tokenizer), image=lambda: pixels(8, 8), config=thin)


@golden
def siglip_vision_interp():
    model = tf.SiglipVisionModel(tf.SiglipVisionConfig(**siglip_vision(image_size=16)))
    write("siglip_vision_interp", model, one("image"), processor=siglip_processor(), image=lambda: pixels(12, 20),
          flags={"interpolate_pos_encoding": True})


@golden
def siglip_vision_nohead():
    """In the spelling of transformers 4, without the pooling head: the mean of the tokens."""
    model = tf.SiglipVisionModel(tf.SiglipVisionConfig(**siglip_vision(vision_use_head=False)))
    write("siglip_vision_nohead", model, one("image", mean), processor=siglip_processor(), image=lambda: pixels(8, 8),
          rename=prefixed("vision_model."))


@golden
def siglip_text_v4():
    tokenizer = gemma_tokenizer()
    model = tf.SiglipTextModel(tf.SiglipTextConfig(**siglip_text(tokenizer)))
    write("siglip_text_v4", model, one("text"), tokenizer=tokenizer, text=lambda: full_rows(tokenizer),
          rename=prefixed("text_model."))


def naflex_vision():
    size = vision_size(num_patches=16)
    del size["image_size"]
    return size


@golden
def siglip2_naflex():
    tokenizer = gemma_tokenizer()
    config = tf.Siglip2Config(text_config=siglip_text(tokenizer), vision_config=naflex_vision())
    model = tf.Siglip2Model(config)
    write("siglip2_naflex", model, dual, tokenizer=tokenizer, processor=naflex_processor(),
          text=lambda: full_rows(tokenizer), image=lambda: patches(model))


@golden
def siglip2_naflex_vision():
    model = tf.Siglip2VisionModel(tf.Siglip2VisionConfig(**naflex_vision()))
    write("siglip2_naflex_vision", model, one("image"), processor=naflex_processor(), image=lambda: patches(model))


# ---------------------------------------------------------------------------------------------------- CLIP's relatives
def clip_vision(**changes):
    return vision_size(**{"projection_dim": 12, **changes})


@golden
def chinese_clip():
    tokenizer = base.bert_tokenizer()
    text = text_size(len(tokenizer), max_position_embeddings=CONTEXT, layer_norm_eps=0.03)
    config = tf.ChineseCLIPConfig(text_config=text, vision_config=clip_vision(), projection_dim=12)

    def clear_padding(model):  # transformers sets this row to zero whenever it loads the model
        model.text_model.embeddings.word_embeddings.weight.data[tokenizer.pad_token_id] = 0

    write("chinese_clip", tf.ChineseCLIPModel(config), lambda *a: dual(*a, text_pool=cls), tokenizer=tokenizer,
          processor=chinese_processor(), text=lambda: bert_rows(tokenizer), image=lambda: pixels(8, 8), change=clear_padding)


@golden
def altclip():
    tokenizer = base.xlmr_tokenizer()
    text = text_size(len(tokenizer), max_position_embeddings=CONTEXT + 2, project_dim=20)
    config = tf.AltCLIPConfig(text_config=text, vision_config=clip_vision(), projection_dim=12)
    write("altclip", tf.AltCLIPModel(config), dual, tokenizer=tokenizer, processor=base.clip_processor(),
          text=lambda: bert_rows(tokenizer), image=lambda: pixels(8, 8))


@golden
def metaclip_2():
    """The end token's id is 2, and the first of it counts, not the first largest id as in CLIP."""
    tokenizer = base.xlmr_tokenizer()
    text = text_size(len(tokenizer), max_position_embeddings=CONTEXT, eos_token_id=2, bos_token_id=0, projection_dim=12,
                     hidden_act="gelu")
    config = tf.MetaClip2Config(text_config=text, vision_config=clip_vision(), projection_dim=12)
    write("metaclip_2", tf.MetaClip2Model(config), dual, tokenizer=tokenizer, processor=base.clip_processor(),
          text=lambda: eos_rows(tokenizer), image=lambda: pixels(8, 8))


def clipseg_config():
    return tf.CLIPSegConfig(text_config=base.clip_text_size(), vision_config=base.clip_vision_size(), projection_dim=12,
                            extract_layers=[0, 1], reduce_dim=8, decoder_num_attention_heads=2,
                            decoder_intermediate_size=16)


def clip_rows(config):
    return lambda: base.clip_inputs(config.text_config)


@golden
def clipseg():
    config = clipseg_config()
    write("clipseg", tf.CLIPSegModel(config), dual, tokenizer=base.clip_tokenizer(), processor=base.vit_processor(),
          text=clip_rows(config), image=lambda: pixels(8, 8))


@golden
def clipseg_decoder():
    """The published files: the CLIP half under `clip.`, beside a decoder that embeddings do not read."""
    config = clipseg_config()
    write("clipseg_decoder", tf.CLIPSegForImageSegmentation(config), dual, tokenizer=base.clip_tokenizer(),
          processor=base.vit_processor(), text=clip_rows(config), image=lambda: pixels(8, 8))


# -------------------------------------------------------------------------------------------------------------- towers
def registers_config(**changes):
    size = vision_size(mlp_ratio=2, num_register_tokens=3, **changes)
    del size["intermediate_size"]
    return tf.Dinov2WithRegistersConfig(**size)


@golden
def dinov2_registers():
    write("dinov2_registers", tf.Dinov2WithRegistersModel(registers_config()), one("image"),
          processor=base.dinov2_processor(), image=lambda: pixels(8, 8))


@golden
def dinov2_registers_interp():
    """Its positions are resized with antialiasing, unlike DINOv2's own."""
    write("dinov2_registers_interp", tf.Dinov2WithRegistersModel(registers_config(image_size=20)), one("image"),
          processor=base.dinov2_processor(), image=lambda: pixels(12, 24))


@golden
def dinov2_registers_cls():
    model = tf.Dinov2WithRegistersForImageClassification(registers_config(num_labels=7, use_swiglu_ffn=True))

    def outputs(model, text, image):
        return tower("image", model.dinov2_with_registers, image) | {"image.pooled": model(**image).logits}

    write("dinov2_registers_cls", model, torch.no_grad()(outputs), processor=base.dinov2_processor(),
          image=lambda: pixels(8, 8))


@golden
def dinov2_swiglu_v5():
    """The names of transformers 5: gate, up and down in place of two fused weights."""
    write("dinov2_swiglu_v5", tf.Dinov2Model(base.dinov2_config(use_swiglu_ffn=True)), one("image"),
          processor=base.dinov2_processor(), image=lambda: pixels(8, 8), save_original_format=False)


def beit_processor():
    return tf.BeitImageProcessorPil(size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8}, do_center_crop=False)


def write_beit(name, model, outputs, **options):
    write(name, model, outputs, processor=beit_processor(), image=lambda: pixels(8, 8), **options)


@golden
def beit():
    """As published: a bias on the scores for each block, LayerScale, the normed mean of the patches."""
    write_beit("beit", tf.BeitModel(tf.BeitConfig(**vision_size(use_relative_position_bias=True))), one("image"))


@golden
def beit_absolute():
    """A position table, no LayerScale, the class token, whose norm is the tower's."""
    config = tf.BeitConfig(**vision_size(use_absolute_position_embeddings=True, use_mean_pooling=False,
                                         layer_scale_init_value=0.0))
    write_beit("beit_absolute", tf.BeitModel(config), one("image"))


@golden
def beit_cls():
    model = tf.BeitForImageClassification(tf.BeitConfig(**vision_size(use_relative_position_bias=True, num_labels=7)))

    def outputs(model, text, image):
        return tower("image", model.beit, image) | {"image.pooled": model(**image).logits}

    write_beit("beit_cls", model, torch.no_grad()(outputs))


# ------------------------------------------------------------------------------------------ VisionTextDualEncoderModel
@golden
def vtde_siglip_bert():
    tokenizer = base.bert_tokenizer()
    model = base.dual(tf.SiglipVisionModel(tf.SiglipVisionConfig(**siglip_vision())), tf.BertModel(base.bert_config()))
    write("vtde_siglip_bert", model, dual, tokenizer=tokenizer, processor=siglip_processor(),
          text=lambda: bert_rows(tokenizer), image=lambda: pixels(8, 8))


@golden
def vtde_registers_mpnet():
    tokenizer = mpnet_tokenizer()
    text = tf.MPNetConfig(**text_size(len(tokenizer), max_position_embeddings=CONTEXT + 2))
    model = base.dual(tf.Dinov2WithRegistersModel(registers_config()), tf.MPNetModel(text))
    write("vtde_registers_mpnet", model, dual, tokenizer=tokenizer, processor=base.dinov2_processor(),
          text=lambda: bert_rows(tokenizer), image=lambda: pixels(8, 8))


def mpnet_tokenizer():
    words = list(LETTERS) + ["##" + letter for letter in LETTERS[:36]] + WORDS + ["grass"]
    vocab = ["<s>", "<pad>", "</s>", "[UNK]", *words, "<mask>"]
    return tf.MPNetTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, model_max_length=CONTEXT)


@golden
def vtde_clip_halves():
    """Both halves are CLIP's: the text half pools the end token."""
    config = base.clip_config()
    model = base.dual(tf.CLIPVisionModel(config.vision_config), tf.CLIPTextModel(config.text_config))
    write("vtde_clip_halves", model, dual, tokenizer=base.clip_tokenizer(), processor=base.clip_processor(),
          text=clip_rows(config), image=lambda: pixels(8, 8))


# ---------------------------------------------------------------------------------------------------------------- BLIP
def blip_config(tokenizer):
    text = text_size(len(tokenizer), max_position_embeddings=CONTEXT, encoder_hidden_size=24, bos_token_id=2, eos_token_id=3,
                     sep_token_id=3, pad_token_id=0, layer_norm_eps=0.03)
    return tf.BlipConfig(text_config=text, vision_config=vision_size(), image_text_hidden_size=12, projection_dim=12)


@golden
def blip_itm():
    tokenizer = base.bert_tokenizer()
    write("blip_itm", tf.BlipForImageTextRetrieval(blip_config(tokenizer)), blip_retrieval, tokenizer=tokenizer,
          processor=blip_processor(), text=lambda: bert_rows(tokenizer), image=lambda: pixels(8, 8))


@golden
def blip_model():
    tokenizer = base.bert_tokenizer()
    write("blip_model", tf.BlipModel(blip_config(tokenizer)), dual, tokenizer=tokenizer, processor=blip_processor(),
          text=lambda: bert_rows(tokenizer), image=lambda: pixels(8, 8))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for wanted in sys.argv[1:] or MAKERS:
        MAKERS[wanted]()
        print(wanted, sum(file.stat().st_size for file in (GOLDEN / wanted).iterdir()), "bytes")
