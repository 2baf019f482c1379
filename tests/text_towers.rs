//! Text towers beyond what every golden folder is asked: BLIP's look at the image, open_clip's Hugging Face towers, folders of
//! sentence-transformers.

mod common;

use std::sync::Arc;

use common::Golden;
use diptych::candle::Tensor;
use diptych::towers::{Collect, CrossBert, TextTowerConfig};
use diptych::weights::{Checkpoint, CheckpointSource, Folder, Params, Renames};
use diptych::{ClipModel, Result, TextEncoder};

/// BLIP's names, those of the cross-attention too.
const NAMES: [(&str, &str); 15] = [
    ("crossattention.self.query", "cross_attn.q_proj"),
    ("crossattention.self.key", "cross_attn.k_proj"),
    ("crossattention.self.value", "cross_attn.v_proj"),
    ("crossattention.output.dense", "cross_attn.out_proj"),
    ("crossattention.output.LayerNorm", "cross_attn.layer_norm"),
    ("embeddings.LayerNorm", "embeddings.layer_norm"),
    ("encoder.layer", "encoder.layers"),
    ("attention.self.query", "self_attn.q_proj"),
    ("attention.self.key", "self_attn.k_proj"),
    ("attention.self.value", "self_attn.v_proj"),
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.output.LayerNorm", "layer_norm1"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("output.LayerNorm", "layer_norm2"),
];

fn cross_bert(golden: &Golden) -> Result<(CrossBert, Params)> {
    let encoder = TextEncoder::from_pretrained(golden.dir())?;
    let TextTowerConfig::Bert(config) = &encoder.config().tower else { panic!("BLIP's tower is a BERT") };
    let checkpoint = Arc::new(Checkpoint::open(&Folder::open(golden.dir())?)?);
    let params = Params::new(CheckpointSource::new(checkpoint, &Renames::new(&NAMES, &[])?).trainable(|_| true));
    Ok((CrossBert::new(&params, &params, config, 24)?, params))
}

#[test]
fn blips_text_looks_at_the_image_as_in_transformers() -> Result<()> {
    let golden = Golden::named("blip_text");
    let (tower, params) = cross_bert(&golden)?;
    let output = tower.forward(&golden.tokens(), &golden.tensors["image_tokens"])?;
    golden.check("cross.last_hidden_state", &output);
    // Every parameter of both passes gets a gradient: there is nothing else in the file.
    let weights = Tensor::arange(0f32, output.elem_count() as f32, output.device())?.sin()?.reshape(output.shape())?;
    let gradients = (output * weights)?.sum_all()?.backward()?;
    let parameters = params.finish("blip_text")?;
    for (name, parameter) in parameters.iter() {
        let gradient = gradients.get(&parameter).unwrap_or_else(|| panic!("{name} got no gradient"));
        let size = gradient.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(size.is_finite() && (size > 1e-12 || name.ends_with("k_proj.bias")), "{name}: {size}");
    }
    assert_eq!(parameters.iter().filter(|(name, _)| name.contains("cross_attn")).count(), 2 * 10);
    Ok(())
}

#[test]
fn image_tokens_of_another_width_or_number_are_refused() -> Result<()> {
    let golden = Golden::named("blip_text");
    let (tower, _) = cross_bert(&golden)?;
    let image = &golden.tensors["image_tokens"];
    for wrong in [image.narrow(0, 0, 2)?, image.narrow(2, 0, 20)?, image.get(0)?] {
        let error = tower.forward(&golden.tokens(), &wrong).expect_err("wrong shape").to_string();
        assert!(error.contains("image_tokens") && error.contains("(3, P, 24)"), "{error}");
    }
    Ok(())
}

#[test]
fn hugging_face_towers_in_open_clip_give_its_numbers() -> Result<()> {
    for name in ["roberta", "xlmr", "mt5", "nllb"] {
        let golden = Golden::named(&format!("open_clip_hf_{name}"));
        let model = ClipModel::from_pretrained(golden.dir())?;
        let text = model.text_encoder().forward(&golden.tokens(), Collect::HiddenStates)?;
        golden.check("text.last_hidden_state", &text.last_hidden_state);
        golden.check("text.pooled", &text.pooled);
        for (i, state) in text.hidden_states.iter().enumerate() {
            golden.check(&format!("text.hidden_states.{i}"), state);
        }
        let output = model.forward(golden.pixels(), &golden.tokens())?;
        golden.check("text_features", &output.text_features);
        golden.check("image_features", &output.image_features);
        golden.check("logits_per_image", &output.logits_per_image);
        let gradients = output.logits_per_image.sqr()?.sum_all()?.backward()?;
        for (name, parameter) in model.parameters().iter().filter(|(name, _)| name.starts_with("text")) {
            assert!(gradients.get(&parameter).is_some(), "{name} got no gradient");
        }
    }
    Ok(())
}

#[test]
fn folders_of_sentence_transformers_keep_their_pooling_and_their_ids() -> Result<()> {
    for (name, normalised) in [("mean", true), ("cls", false), ("max", false), ("last", false)] {
        let golden = Golden::named(&format!("sentence_{name}"));
        let encoder = TextEncoder::from_pretrained(golden.dir())?;
        let output = encoder.forward(&golden.tokens(), Collect::HiddenStates)?;
        golden.check("text.last_hidden_state", &output.last_hidden_state);
        golden.check("text.pooled", &output.pooled);
        golden.check("text.pooled", &encoder.pooled(&golden.tokens())?);
        let facts = std::fs::read_to_string(golden.path.join("golden.json")).expect("golden.json");
        let facts: serde_json::Value = serde_json::from_str(&facts).expect("JSON");
        let texts: Vec<&str> =
            facts["sample_texts"].as_array().expect("texts").iter().filter_map(|t| t.as_str()).collect();
        let tokens = encoder.tokenize(&texts)?;
        for (i, row) in facts["sample_input_ids"].as_array().expect("ids").iter().enumerate() {
            let row: Vec<u32> = row.as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect();
            assert_eq!(tokens.row(i), Some(&row[..]), "{name}: {:?}", texts[i]);
        }
        let mut embedding = encoder.encode(&texts)?;
        if normalised {
            embedding = diptych::ops::l2_normalize(&embedding)?;
        }
        golden.check("sentence_embedding", &embedding);
    }
    Ok(())
}
