"""Writes the golden folders of the text towers: `tests/golden/<name>/` as `make_golden.py` writes its own.

`golden.safetensors` holds `input_ids`, `attention_mask`, `text.hidden_states.{i}`, `text.last_hidden_state` and `text.pooled`.
Pooled is what the layout says: AltCLIP's and BLIP's first token, the embedding of sentence-transformers before it is
normalised, open_clip's pooler; for a tower alone the mean of the tokens that are no padding.

`python make_text_golden.py [name…]` rewrites all folders, or those named.
Written with transformers 5.23.0, open_clip 3.3.0, sentence-transformers 6.2.0, torch 2.11.0 (CPU).
"""

import json
import shutil
import sys

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import make_golden as base
from golden_folder import GOLDEN, begin, check_double, registry, save
from make_golden import CONTEXT, bert_tokenizer, text_size, xlmr_tokenizer

MAKERS, golden = registry()


def mean(output, inputs):
    mask = inputs["attention_mask"].unsqueeze(-1).to(output.last_hidden_state)
    return (output.last_hidden_state * mask).sum(1) / mask.sum(1)


def first(output, inputs):
    return output.last_hidden_state[:, 0]


def pooler(output, inputs):
    return output.pooler_output


@torch.no_grad()
def outputs(tower, inputs, pool):
    output = tower(**inputs, output_hidden_states=True)
    return base.tower_outputs("text", output, pool(output, inputs))


def inputs_for(tokenizer, lengths=(9, 5, 7)):
    first_id, last_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    return base.text_inputs(list(lengths), first_id, last_id, tokenizer.pad_token_id, range(5, len(tokenizer) - 1))


def write(model, name, tokenizer, pool=mean, lengths=(9, 5, 7), tower=lambda model: model, rename=None, config=None,
          more=None, load={}):
    """Writes the folder `name`, loads it again, and asks both models (and one in f64) for the same numbers.

    `tower`: from the model to its text encoder. `rename`: from the tensors as saved to the tensors as the folder shall hold
    them; `config` does so for the configuration. `more`: further golden tensors from (tower, inputs).
    """
    folder = begin(name)
    base.randomise(model)
    model.save_pretrained(folder)
    if rename:
        save_file(rename(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    if config:
        saved = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config(saved), indent=2) + "\n")
    tokenizer.save_pretrained(folder)

    inputs = inputs_for(tokenizer, lengths)
    expected = outputs(tower(base.prepared(model)), inputs, pool)
    again = base.prepared(type(model).from_pretrained(folder, dtype=torch.float32, **load))
    base.check_equal(name, expected, outputs(tower(again), inputs, pool))
    if more:
        expected |= more(tower(again), inputs)
    check_double(name, {k: v for k, v in expected.items() if k.startswith("text.")}, outputs(tower(again.double()), inputs, pool))
    save({**inputs, **expected}, folder / "golden.safetensors")
    facts = {"model": type(model).__name__} | base.sample_ids(tf.AutoTokenizer.from_pretrained(folder))
    (folder / "golden.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")


# -------------------------------------------------------------------------------------------------------------- BERT's kin
def distilbert_config(**changes):
    return tf.DistilBertConfig(vocab_size=len(bert_tokenizer()), dim=16, n_layers=2, n_heads=2, hidden_dim=40,
                               max_position_embeddings=CONTEXT, **changes)


@golden
def distilbert():
    write(tf.DistilBertModel(distilbert_config()), "distilbert", bert_tokenizer())


@golden
def distilbert_mlm():
    """With the head of its pre-training, another activation, and the prefix."""
    write(tf.DistilBertForMaskedLM(distilbert_config(activation="relu")), "distilbert_mlm", bert_tokenizer(),
          tower=lambda model: model.distilbert)


def mpnet_tokenizer():
    pieces = bert_tokenizer().get_vocab()
    pieces = [piece for piece in sorted(pieces, key=pieces.get) if not piece.startswith("[")]
    vocab = ["<s>", "<pad>", "</s>", "[UNK]", *pieces, "<mask>"]
    return tf.MPNetTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, model_max_length=CONTEXT)


def mpnet_config(**changes):
    size = text_size(len(mpnet_tokenizer()), max_position_embeddings=CONTEXT + 2, layer_norm_eps=1e-5)
    return tf.MPNetConfig(**{**size, **changes})


@golden
def mpnet():
    """Rows long enough that the logarithmic buckets of the relative positions are used; the position buffer of old files."""
    def rename(tensors):
        return {**tensors, "embeddings.position_ids": torch.arange(CONTEXT + 2).unsqueeze(0)}

    write(tf.MPNetModel(mpnet_config()), "mpnet", mpnet_tokenizer(), lengths=(16, 5, 13), rename=rename)


@golden
def mpnet_mlm():
    write(tf.MPNetForMaskedLM(mpnet_config(layer_norm_eps=0.03)), "mpnet_mlm", mpnet_tokenizer(), lengths=(14, 8, 11),
          tower=lambda model: model.mpnet)


@golden
def camembert():
    size = text_size(len(xlmr_tokenizer()), layer_norm_eps=1e-5, type_vocab_size=1, max_position_embeddings=CONTEXT + 2)
    write(tf.CamembertForMaskedLM(tf.CamembertConfig(**size)), "camembert", xlmr_tokenizer(), tower=lambda model: model.roberta)


@golden
def altclip_text():
    size = text_size(len(xlmr_tokenizer()), max_position_embeddings=CONTEXT + 2, layer_norm_eps=0.02, project_dim=12)
    write(tf.AltCLIPTextModel(tf.AltCLIPTextConfig(**size)), "altclip_text", xlmr_tokenizer(), pool=pooler)


@golden
def blip_text():
    """The contrastive pass in `text.*`; the pass that looks at an image in `cross.last_hidden_state`."""
    def cross(tower, inputs):
        image_tokens = torch.randn(3, 6, 24)
        with torch.no_grad():
            output = tower(**inputs, encoder_hidden_states=image_tokens, encoder_attention_mask=torch.ones(3, 6))
        return {"image_tokens": image_tokens, "cross.last_hidden_state": output.last_hidden_state}

    size = text_size(len(bert_tokenizer()), max_position_embeddings=CONTEXT, encoder_hidden_size=24)
    model = tf.BlipTextModel(tf.BlipTextConfig(**size), add_pooling_layer=False)
    write(model, "blip_text", bert_tokenizer(), pool=first, more=cross, load={"add_pooling_layer": False})


# -------------------------------------------------------------------------------------------------- encoders of translators
def t5_size(**changes):
    return {"vocab_size": len(xlmr_tokenizer()), "d_model": 16, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 2,
            "feed_forward_proj": "gated-gelu", "n_positions": CONTEXT, "pad_token_id": 1, **changes}


@golden
def mt5():
    """Heads that are together narrower than the stream."""
    write(tf.MT5EncoderModel(tf.MT5Config(**t5_size())), "mt5", xlmr_tokenizer(), lengths=(15, 5, 12))


@golden
def t5_whole():
    """A whole model, whose decoder goes unused; few buckets, a small distance, another activation."""
    config = tf.T5Config(**t5_size(feed_forward_proj="gated-silu", num_decoder_layers=1, relative_attention_num_buckets=8,
                                   relative_attention_max_distance=10, layer_norm_epsilon=0.02))
    write(tf.T5Model(config), "t5_whole", xlmr_tokenizer(), lengths=(16, 5, 12), tower=lambda model: model.encoder)


@golden
def m2m100():
    config = tf.M2M100Config(vocab_size=len(xlmr_tokenizer()), d_model=18, encoder_layers=2, encoder_attention_heads=3,
                             encoder_ffn_dim=40, decoder_layers=1, decoder_attention_heads=3, decoder_ffn_dim=8,
                             max_position_embeddings=CONTEXT, activation_function="relu")
    write(tf.M2M100Model(config), "m2m100", xlmr_tokenizer(), tower=lambda model: model.encoder)


# ------------------------------------------------------------------------------------------------------------- ModernBERT
# Every row reaches so far that no query of a local block sees padding only: of those the reference gives noise.
MODERN_LENGTHS = (12, 10, 11)


def modernbert_config(**changes):
    size = text_size(len(bert_tokenizer()), num_hidden_layers=4, max_position_embeddings=CONTEXT, local_attention=4)
    ids = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    return tf.ModernBertConfig(**{**size, **ids, **changes})


@golden
def modernbert():
    """The configuration of the published files, in the spelling of transformers 4."""
    def old(config):
        for new in ("layer_types", "rope_parameters"):
            del config[new]
        return config | {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 50.0}

    rope = {"full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}
    model = tf.ModernBertForMaskedLM(modernbert_config(classifier_pooling="mean", rope_parameters=rope))
    write(model, "modernbert", bert_tokenizer(), lengths=MODERN_LENGTHS, tower=lambda model: model.model, config=old)


@golden
def modernbert_biases():
    layers = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    config = modernbert_config(norm_bias=True, attention_bias=True, mlp_bias=True, hidden_activation="silu", norm_eps=0.02,
                               layer_types=layers, local_attention=5)
    write(tf.ModernBertModel(config), "modernbert_biases", bert_tokenizer(), pool=first, lengths=MODERN_LENGTHS)


# --------------------------------------------------------------------------------------- Hugging Face towers in open_clip
def open_clip_folder(name, hf_name, config, tokenizer, **text_cfg):
    """A model whose text tower is named `hf_name` and has the sizes of `config`, as open_clip builds, saves and computes it."""
    from make_open_clip_golden import states, without
    from open_clip.model import CustomTextCLIP

    name = "open_clip_hf_" + name
    folder = begin(name)
    cfg = {"embed_dim": 12, "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 8},
           "text_cfg": {"hf_model_name": hf_name, "hf_tokenizer_name": hf_name, "context_length": CONTEXT, **text_cfg}}
    # open_clip asks the hub for the configuration; only its sizes are other ones here.
    tf.AutoConfig.from_pretrained, asked = (lambda wanted: config), tf.AutoConfig.from_pretrained
    try:
        model = CustomTextCLIP(**json.loads(json.dumps(cfg | {"text_cfg": cfg["text_cfg"] | {"hf_model_pretrained": False}})))
    finally:
        tf.AutoConfig.from_pretrained = asked
    base.randomise(model)
    model = model.eval()
    save(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}, indent=1) + "\n")
    tokenizer.save_pretrained(folder)

    inputs = inputs_for(tokenizer)
    # The reference masks its padding id, whatever a tokenizer says.
    assert torch.equal(inputs["input_ids"] != config.pad_token_id, inputs["attention_mask"] == 1)
    pixels = torch.randn(3, 3, 8, 8)

    @torch.no_grad()
    def run(model, pixels):
        text, visual = model.text, model.visual
        tokens = text.transformer(**inputs, output_hidden_states=True)
        patches = states(visual.transformer.resblocks, lambda: visual(pixels))
        image = {f"image.hidden_states.{i}": state for i, state in enumerate(patches)}
        image |= {"image.last_hidden_state": patches[-1], "image.pooled": without(visual, "proj", lambda: visual(pixels))}
        features = model.encode_text(inputs["input_ids"]), model.encode_image(pixels)
        embeds = [torch.nn.functional.normalize(feature, dim=-1) for feature in features]
        return {**base.tower_outputs("text", tokens, text.pooler(tokens, inputs["attention_mask"])), **image,
                "text_features": features[0], "image_features": features[1], "text_embeds": embeds[0], "image_embeds": embeds[1],
                "logits_per_image": model.logit_scale.exp() * embeds[1] @ embeds[0].T, "logit_scale": model.logit_scale.detach()}

    expected = run(model, pixels)
    tensors = {key: value.clone().contiguous() for key, value in {**inputs, "pixel_values": pixels, **expected}.items()}
    check_double(name, {k: v.clone() for k, v in expected.items()}, run(model.double(), pixels.double()))
    save_file(tensors, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps({"model": hf_name}) + "\n")


def twelve_heads(tokenizer, **changes):
    """The published number of heads, which no tensor shows."""
    size = text_size(len(tokenizer), layer_norm_eps=1e-5, type_vocab_size=1, max_position_embeddings=CONTEXT + 2)
    return {**size, "hidden_size": 24, "num_attention_heads": 12, **changes}


@golden
def open_clip_hf_roberta():
    config = tf.RobertaConfig(**twelve_heads(base.roberta_tokenizer()))
    open_clip_folder("roberta", "roberta-base", config, base.roberta_tokenizer(), hf_pooler_type="mean_pooler")


@golden
def open_clip_hf_xlmr():
    config = tf.XLMRobertaConfig(**twelve_heads(xlmr_tokenizer(), hidden_size=32, num_attention_heads=16))
    open_clip_folder("xlmr", "xlm-roberta-large", config, xlmr_tokenizer(), hf_pooler_type="cls_pooler", hf_proj_type="linear")


@golden
def open_clip_hf_mt5():
    config = tf.MT5Config(**t5_size(pad_token_id=0, vocab_size=len(bert_tokenizer())))
    open_clip_folder("mt5", "google/mt5-base", config, bert_tokenizer(), hf_pooler_type="mean_pooler")


@golden
def open_clip_hf_nllb():
    config = tf.M2M100Config(vocab_size=len(xlmr_tokenizer()), d_model=32, encoder_layers=2, encoder_attention_heads=16,
                             encoder_ffn_dim=40, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8,
                             max_position_embeddings=1024, activation_function="relu")
    open_clip_folder("nllb", "facebook/nllb-200-distilled-600M", config, xlmr_tokenizer(), hf_pooler_type="cls_pooler",
                     hf_proj_type="linear")


# ------------------------------------------------------------------------------------------------- sentence-transformers
def sentence_folder(name, model, tokenizer, mode, max_seq_length, lower=False, normalize=False, arrange=None):
    """What sentence-transformers saves for a transformer, a pooling and perhaps a normalisation; `arrange` makes an older
    layout of it. The pooled output is what its Pooling module gives; ids are those of its own tokenisation."""
    import sentence_transformers as st
    from sentence_transformers.models import Normalize, Pooling, Transformer

    folder = begin(name)
    plain = GOLDEN / (name + "_plain")
    base.randomise(model)
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=max_seq_length, do_lower_case=lower)
    modules = [transformer, Pooling(model.config.hidden_size, pooling_mode=mode)] + [Normalize()] * normalize
    st.SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(plain)
    if arrange:
        arrange(folder)
    if lower:  # versions before 6 kept the length here, not in the tokenizer's file
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_seq_length, "do_lower_case": True}) + "\n")
        tokenizer.save_pretrained(folder)

    again = st.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    again[0].auto_model.set_attn_implementation("eager")
    inputs = inputs_for(tokenizer, (8, 5, 7))
    with torch.no_grad():
        states = again[0].auto_model.eval()(**inputs, output_hidden_states=True)
        pooled = again[1]({"token_embeddings": states.last_hidden_state, **inputs})["sentence_embedding"]
        features = again[0]({**inputs})
    assert torch.equal(features["token_embeddings"], states.last_hidden_state)
    tensors = {**inputs, **base.tower_outputs("text", states, pooled)}
    texts = base.SAMPLE_TEXTS
    with torch.no_grad():
        tensors["sentence_embedding"] = torch.tensor(again.encode(texts))
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, folder / "golden.safetensors")
    batch = again.tokenize(texts)
    facts = {"model": "SentenceTransformer", "sample_texts": texts, "sample_input_ids": batch["input_ids"].tolist()}
    (folder / "golden.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")


@golden
def sentence_mean():
    """The commonest form: MPNet, mean, a shorter length, normalised rows."""
    sentence_folder("sentence_mean", tf.MPNetModel(mpnet_config()), mpnet_tokenizer(), "mean", 10, normalize=True)


@golden
def sentence_cls():
    """A flag for each mode, as versions before 6 wrote it, and lower case."""
    def arrange(folder):
        path = folder / "1_Pooling" / "config.json"
        flags = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
        config = {"word_embedding_dimension": 16} | {f"pooling_mode_{flag}": flag == "cls_token" for flag in flags}
        path.write_text(json.dumps(config | {"include_prompt": True}) + "\n")

    size = base.text_size(len(base.roberta_tokenizer()), layer_norm_eps=1e-5, type_vocab_size=1, max_position_embeddings=CONTEXT + 2)
    model = tf.RobertaModel(tf.RobertaConfig(**size), add_pooling_layer=False)
    sentence_folder("sentence_cls", model, base.roberta_tokenizer(), "cls", 12, lower=True, arrange=arrange)


@golden
def sentence_max():
    """The transformer in a folder of its own."""
    def arrange(folder):
        inner = folder / "0_Transformer"
        inner.mkdir()
        for path in list(folder.iterdir()):
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
                path.rename(inner / path.name)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")

    sentence_folder("sentence_max", tf.DistilBertModel(distilbert_config()), bert_tokenizer(), "max", None, arrange=arrange)


@golden
def sentence_last():
    sentence_folder("sentence_last", tf.BertModel(base.bert_config()), bert_tokenizer(), "lasttoken", None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for wanted in sys.argv[1:] or MAKERS:
        MAKERS[wanted]()
        print(wanted, sum(file.stat().st_size for file in (GOLDEN / wanted).rglob("*") if file.is_file()), "bytes")
