//! Low-rank adapters: they start as nothing, train alone, merge without a trace, and go through PEFT's files.

mod common;

use common::{Golden, golden_root, relative_error};
use diptych::adapt::LoraConfig;
use diptych::loss::ClipLoss;
use diptych::train::{AdamW, AdamWConfig, ParamGroup, check_gradients};
use diptych::weights::Pattern;
use diptych::{ClipModel, ClipOutput};

fn golden() -> Golden {
    Golden::named("clip")
}

fn base() -> ClipModel {
    ClipModel::from_pretrained(golden().dir()).unwrap()
}

fn everywhere(rank: usize) -> LoraConfig {
    LoraConfig::new(rank).unwrap().with_targets(vec![Pattern::new("*").unwrap()])
}

fn output(model: &ClipModel) -> ClipOutput {
    golden().clip_output(model)
}

/// A few steps on the golden batch, so that B is not zero any more.
fn trained(config: &LoraConfig) -> ClipModel {
    let model = base().with_lora(config).unwrap();
    let group = ParamGroup { vars: model.trainable(), lr: 1e-2, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(vec![group], AdamWConfig::default()).unwrap();
    for _ in 0..3 {
        let loss = ClipLoss::new().from_logits(&output(&model).logits_per_image).unwrap();
        optimizer.step(&loss.backward().unwrap(), 1.0).unwrap();
    }
    model
}

#[test]
fn fresh_adapters_change_nothing_and_are_all_that_is_trained() {
    let (plain, adapted) = (base(), base().with_lora(&everywhere(4)).unwrap());
    assert!(relative_error(&output(&adapted).logits_per_image, &output(&plain).logits_per_image) < 1e-7);
    let names: Vec<String> = adapted.trainable().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 2 * adapted.linear_layers().len());
    assert!(names.iter().all(|name| name.contains(".lora_")), "{names:?}");
    // Two blocks of six layers a tower, and two projections.
    assert!(adapted.linear_layers().iter().any(|name| name == "visual_projection"));
    assert!(adapted.linear_layers().iter().any(|name| name == "text_model.encoder.layers.0.mlp.fc1"));
    assert!(!adapted.linear_layers().iter().any(|name| name.contains("embedding")));
}

#[test]
fn while_b_is_zero_a_has_a_zero_gradient_and_nothing_else_has() {
    let adapted = base().with_lora(&everywhere(2)).unwrap();
    let loss = ClipLoss::new().from_logits(&output(&adapted).logits_per_image).unwrap();
    let grads = loss.backward().unwrap();
    let may_be_zero = ["*.lora_A.weight", "*.k_proj.lora_B.weight"].map(|p| Pattern::new(p).unwrap());
    check_gradients(1, &adapted.trainable(), &grads, &may_be_zero).unwrap();
    for (name, var) in adapted.trainable() {
        let largest = grads.get(&var).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(largest == 0.0, name.contains("lora_A"), "{name}: {largest}");
    }
}

#[test]
fn merged_equals_unmerged_and_has_no_adapters() {
    let model = trained(&everywhere(3));
    let expected = output(&model).logits_per_image;
    assert!(relative_error(&expected, &output(&base()).logits_per_image) > 1e-3);
    let folder = tempfile::tempdir().unwrap();
    let error = model.save_pretrained(folder.path().join("m")).unwrap_err().to_string();
    assert!(error.contains("merge_lora"), "{error}");
    let merged = model.merge_lora().unwrap();
    assert!(relative_error(&output(&merged).logits_per_image, &expected) < 1e-5);
    assert_eq!(merged.parameters().iter().count(), base().parameters().iter().count());
    merged.save_pretrained(folder.path().join("m")).unwrap();
    let back = ClipModel::from_pretrained(folder.path().join("m").to_str().unwrap()).unwrap();
    assert!(relative_error(&output(&back).logits_per_image, &expected) < 1e-5);
}

#[test]
fn adapters_come_back_from_their_files() {
    let config = LoraConfig { alpha: 7.0, ..LoraConfig::new(3).unwrap() };
    let model = trained(&config);
    let folder = tempfile::tempdir().unwrap();
    model.save_lora(folder.path(), "clip").unwrap();
    let back = base().load_lora(folder.path()).unwrap();
    assert_eq!(relative_error(&output(&back).logits_per_image, &output(&model).logits_per_image), 0.0);
    assert_eq!(back.trainable().len(), model.trainable().len());
    assert!(base().save_lora(folder.path(), "clip").is_err());
    assert!(back.load_lora(folder.path()).err().unwrap().to_string().contains("merge_lora"));
}

#[test]
fn an_adapter_of_peft_gives_its_numbers() {
    let expected = Golden::named("clip_lora");
    let model = base().load_lora(&expected.path).unwrap();
    let found = output(&model);
    expected.check("image_embeds", &found.image_embeds);
    expected.check("text_embeds", &found.text_embeds);
    let merged = output(&model.clone().merge_lora().unwrap());
    expected.check("image_embeds", &merged.image_embeds);
    // For the script that lets PEFT read what is written here.
    if let Ok(folder) = std::env::var("LORA_OUT") {
        model.save_lora(folder, "clip").unwrap();
    }
}

#[test]
fn foreign_and_broken_adapters_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden_root().join("clip_lora");
    std::fs::copy(source.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors")).unwrap();
    let text = std::fs::read_to_string(source.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let refused = |key: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        base().load_lora(folder.path()).err().map(|error| error.to_string())
    };
    assert_eq!(refused("r", 3.into()), None);
    for (key, value) in [("use_dora", true.into()), ("peft_type", "IA3".into()), ("bias", "all".into())] {
        let error = refused(key, value).unwrap();
        assert!(error.contains(key) && error.contains("adapter_config.json"), "{error}");
    }
    assert!(refused("rank_pattern", serde_json::json!({"q_proj": 8})).unwrap().contains("rank_pattern"));
    assert!(refused("r", 4.into()).unwrap().contains("expected [4"));
    assert!(refused("r", 0.into()).unwrap().contains("whole number"));
    let other = ClipModel::from_pretrained(Golden::named("oc_rn").dir()).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = other.load_lora(folder.path()).err().unwrap().to_string();
    assert!(error.contains("vision_model.encoder.layers.0"), "{error}");
    assert!(base().with_lora(&LoraConfig { rank: 0, ..everywhere(1) }).is_err());
    let nowhere = LoraConfig::new(2).unwrap().with_targets(vec![Pattern::new("*.qproj").unwrap()]);
    assert!(base().with_lora(&nowhere).err().unwrap().to_string().contains("qproj"));
}
