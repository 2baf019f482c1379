//! Every architecture and every freeze setting: each trainable parameter gets a finite gradient, non-zero except where
//! mathematics makes it zero; each frozen one gets none.

mod common;

use common::Golden;
use diptych::candle::{DType, Tensor};
use diptych::loss::ClipLoss;
use diptych::{ClipModel, Loaded, Loader};

/// Softmax over keys does not change when every key's score moves by the same amount, so a key's bias has no gradient; unless
/// keys are normed first, or rotary positions turn each by another angle.
fn is_zero_by_mathematics(what: &str, name: &str, parameters: &diptych::weights::Parameters) -> bool {
    let normed = |attention: &str| parameters.get(&format!("{attention}.k_norm.weight")).is_some();
    let rotary = ["modernbert", "oc_timm_eva", "oc_timm_pe"].iter().any(|start| what.starts_with(start));
    // The class token is what is pooled, and its scores in the last block have no bias.
    if what.starts_with("oc_timm_relpos") && name.contains("layers.1.self_attn.relative_positions") {
        return true;
    }
    name.strip_suffix(".k_proj.bias").is_some_and(|attention| !normed(attention) && !rotary)
}

/// The matching head's own parameters: the contrastive pass does not read them, so they are frozen.
fn is_never_read(name: &str) -> bool {
    name.starts_with("matching.")
}

fn largest(t: &Tensor) -> f64 {
    let values: Vec<f64> = t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).expect("values");
    // Unlike a maximum, the sum keeps a NaN.
    if values.iter().sum::<f64>().is_finite() { values.iter().fold(0.0, |m, v| m.max(v.abs())) } else { f64::NAN }
}

/// Backward of `objective`, then the rule for each of `parameters`.
fn check(what: &str, objective: &Tensor, parameters: &diptych::weights::Parameters, trainable: impl Fn(&str) -> bool) {
    let gradients = objective.backward().expect(what);
    for (name, tensor) in parameters.iter() {
        let gradient = gradients.get(tensor);
        if !trainable(name) || parameters.is_buffer(name) {
            assert!(gradient.is_none(), "{what}: frozen {name} got a gradient");
            continue;
        }
        let gradient = gradient.unwrap_or_else(|| panic!("{what}: {name} got no gradient"));
        assert_eq!(gradient.dims(), tensor.dims(), "{what}: {name}");
        let size = largest(gradient);
        assert!(size.is_finite(), "{what}: {name} got a gradient that is not finite");
        if is_zero_by_mathematics(what, name, parameters) {
            assert!(size < 1e-4, "{what}: {name} should get a zero gradient, got {size}");
        } else {
            assert!(size > 1e-12, "{what}: {name} got a zero gradient");
        }
    }
}

/// A sum with uneven weights, so that no symmetry hides a missing term.
fn objective(t: &Tensor) -> Tensor {
    let count = t.elem_count();
    let weights: Vec<f32> = (0..count).map(|i| ((i * 37 + 11) % 23) as f32 / 7.0 - 1.4).collect();
    let weights = Tensor::from_vec(weights, t.dims(), t.device()).expect("weights");
    (t * weights).and_then(|t| t.sum_all()).expect("a sum")
}

#[test]
fn every_tower_gets_all_its_gradients() {
    for golden in Golden::all() {
        match Loader::new().load(golden.dir()).expect(&golden.name) {
            Loaded::Clip(_) => {}
            Loaded::Text(encoder) => {
                let pooled = encoder.pooled(&golden.tokens()).expect(&golden.name);
                check(&golden.name, &objective(&pooled), encoder.parameters(), |_| true);
            }
            Loaded::Image(encoder) => {
                let pooled = golden.image_output(&encoder, diptych::towers::Collect::Last).pooled;
                check(&golden.name, &objective(&pooled), encoder.parameters(), |_| true);
            }
        }
    }
}

#[test]
fn token_level_outputs_have_gradients_too() {
    for golden in Golden::all() {
        if let Loaded::Text(encoder) = Loader::new().load(golden.dir()).expect(&golden.name) {
            let output = encoder.forward(&golden.tokens(), diptych::towers::Collect::Last).expect(&golden.name);
            let parameters = encoder.parameters();
            // SigLIP's head reads the pooled token alone.
            check(&golden.name, &objective(&output.last_hidden_state), parameters, |name| !name.starts_with("head."));
        }
    }
}

#[test]
fn every_freeze_setting_trains_what_it_says_and_nothing_else() {
    type Rule = fn(&str) -> bool;
    let settings: [(&str, Rule); 6] = [
        ("nothing frozen", |_| true),
        ("text frozen", |name| !name.starts_with("text_model.")),
        ("image frozen", |name| !name.starts_with("vision_model.")),
        ("both frozen", |name| !name.starts_with("vision_model.") && !name.starts_with("text_model.")),
        ("embeddings frozen", |name| !name.contains(".embeddings.")),
        ("scale and heads frozen", |name| name.contains("_model.")),
    ];
    for golden in Golden::all() {
        let Loaded::Clip(model) = Loader::new().load(golden.dir()).expect(&golden.name) else { continue };
        for origin in [false, true] {
            let model = if origin {
                let (text, image) = (model.text_encoder().clone(), model.image_encoder().clone());
                ClipModel::from_encoders(text, image, 16).expect(&golden.name)
            } else {
                (*model).clone()
            };
            for (setting, rule) in settings {
                let model = model.clone().with_trainable(rule).expect(&golden.name);
                let output = golden.clip_output(&model);
                // Softmax over a row does not change when all logits move by a bias: such models learn from the logits themselves.
                let loss = match &output.logit_bias {
                    Some(_) => objective(&output.logits_per_image),
                    None => {
                        // As many images as texts: pairs.
                        let pairs = output.image_embeds.dims()[0].min(output.text_embeds.dims()[0]);
                        let first = |embeds: &Tensor| embeds.narrow(0, 0, pairs).expect(&golden.name);
                        let (images, texts) = (first(&output.image_embeds), first(&output.text_embeds));
                        ClipLoss::new().forward(&images, &texts, &output.logit_scale).expect(&golden.name)
                    }
                };
                let what = format!("{}, origin {origin}, {setting}", golden.name);
                check(&what, &loss, &model.parameters(), |name| rule(name) && !is_never_read(name));
            }
        }
    }
}
