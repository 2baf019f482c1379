//! Recomputation gives every tower the gradients it has without, bit for bit; bf16 towers train f32 parameters.

mod common;

use common::Golden;
use diptych::candle::{DType, Tensor};
use diptych::loss::ClipLoss;
use diptych::train::{Optimizer, OptimizerConfig, ParamGroup, Precision};
use diptych::weights::Activations;
use diptych::{ClipModel, Loaded, Loader};

fn loss(model: &ClipModel, golden: &Golden) -> Tensor {
    let output = golden.clip_output(model);
    let pairs = output.image_embeds.dims()[0].min(output.text_embeds.dims()[0]);
    let first = |embeds: &Tensor| embeds.to_dtype(DType::F32).unwrap().narrow(0, 0, pairs).unwrap();
    ClipLoss::new().forward(&first(&output.image_embeds), &first(&output.text_embeds), &output.logit_scale).unwrap()
}

fn gradients(model: &ClipModel, loss: &Tensor) -> Vec<(String, Option<Vec<f32>>)> {
    let grads = loss.backward().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    model.trainable().into_iter().map(|(name, var)| (name, grads.get(&var).map(flat))).collect()
}

/// How many numbers a graph holds besides the variables.
fn numbers(loss: &Tensor) -> usize {
    let nodes = loss.sorted_nodes();
    nodes.iter().filter(|node| !node.is_variable()).map(|node| node.elem_count()).sum()
}

#[test]
fn a_graph_with_recomputation_is_a_fraction_of_the_other() {
    for name in ["clip", "siglip", "vtde_vit_bert"] {
        let golden = Golden::named(name);
        let model = ClipModel::from_pretrained(golden.dir()).unwrap();
        let stored = numbers(&loss(&model, &golden));
        let model = model.with_activations(Activations::Recomputed).unwrap();
        let recomputed = numbers(&loss(&model, &golden));
        // Two blocks, of which the last may keep everything for the token that is pooled.
        assert!(3 * recomputed < 2 * stored, "{name}: {recomputed} of {stored}");
    }
}

#[test]
fn gradients_of_every_dual_encoder_are_the_same_bits_with_and_without_recomputation() {
    let mut checked = 0;
    for golden in Golden::all() {
        let Loaded::Clip(model) = Loader::new().load(golden.dir()).expect(&golden.name) else { continue };
        for frozen in ["", "vision_model.embeddings", "text_model."] {
            let model = (*model).clone().with_trainable(|name| frozen.is_empty() || !name.starts_with(frozen)).unwrap();
            if model.trainable().iter().any(|(_, var)| var.dtype() != DType::F32) {
                continue;
            }
            let plain = gradients(&model, &loss(&model, &golden));
            let other = model.clone().with_activations(Activations::Recomputed).unwrap();
            for ((name, found), (_, expected)) in gradients(&other, &loss(&other, &golden)).iter().zip(&plain) {
                // Every text of every block adds to the bias of relative positions, in another order.
                let same = match (found, expected) {
                    (Some(a), Some(b)) if name.ends_with("relative_attention_bias.weight") => {
                        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1e-2))
                    }
                    (a, b) => a == b,
                };
                assert!(same, "{}, without '{frozen}': {name}", golden.name);
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}

#[test]
fn adapters_are_trained_through_recomputed_blocks() {
    let golden = Golden::named("clip");
    let config = diptych::adapt::LoraConfig::new(2).unwrap();
    let model = ClipModel::from_pretrained(golden.dir()).unwrap().with_lora(&config).unwrap();
    let plain = gradients(&model, &loss(&model, &golden));
    let other = model.with_activations(Activations::Recomputed).unwrap();
    assert_eq!(gradients(&other, &loss(&other, &golden)), plain);
    assert!(plain.iter().all(|(_, grad)| grad.is_some()));
}

#[test]
fn bf16_towers_train_f32_parameters_whose_small_steps_add_up() {
    let golden = Golden::named("clip");
    for activations in [Activations::Stored, Activations::Recomputed] {
        let model = ClipModel::from_pretrained(golden.dir()).unwrap().with_activations(activations).unwrap();
        let before: Vec<Tensor> = model.trainable().iter().map(|(_, var)| var.copy().unwrap()).collect();
        let groups = ParamGroup::split_decay(model.trainable(), 1e-3, 0.0).to_vec();
        let mut optimizer = Optimizer::new(groups, OptimizerConfig::default()).unwrap();
        let f32_loss = |model: &ClipModel| loss(model, &golden).to_scalar::<f32>().unwrap();
        let (start, mut in_bf16) = (f32_loss(&model), Vec::new());
        for _ in 0..30 {
            let step = model.for_step(Precision::Bf16).unwrap();
            let image = step.image_encoder().pooled(golden.pixels()).unwrap();
            let text = step.text_encoder().pooled(&golden.tokens()).unwrap();
            assert_eq!((image.dtype(), text.dtype()), (DType::BF16, DType::BF16));
            let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let (image, text) = (step.project_image(&wide(&image)).unwrap(), step.project_text(&wide(&text)).unwrap());
            let output = step.output(image, text).unwrap();
            let pairs = output.image_embeds.dims()[0].min(output.text_embeds.dims()[0]);
            let first = |embeds: &Tensor| embeds.narrow(0, 0, pairs).unwrap();
            let (images, texts) = (first(&output.image_embeds), first(&output.text_embeds));
            let value = ClipLoss::new().forward(&images, &texts, &output.logit_scale).unwrap();
            let grads = value.backward().unwrap();
            for (name, var) in model.trainable() {
                assert_eq!(grads.get(&var).unwrap_or_else(|| panic!("{name}")).dtype(), DType::F32, "{name}");
            }
            optimizer.step(&grads, 1.0).unwrap();
            in_bf16.push(value.to_scalar::<f32>().unwrap());
        }
        assert!((in_bf16[0] - start).abs() < 0.05, "{start} {in_bf16:?}");
        assert!(f32_loss(&model) < 0.5 * start, "{start} to {}", f32_loss(&model));
        // What is kept is f32, with digits that bf16 has not.
        let mut rounded = 0;
        for ((name, var), before) in model.trainable().iter().zip(&before) {
            assert_eq!(var.dtype(), DType::F32, "{name}");
            let short = var.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
            let lost = (var.as_tensor() - short).unwrap().abs().unwrap().sum_all().unwrap();
            let moved = (var.as_tensor() - before).unwrap().abs().unwrap().sum_all().unwrap();
            rounded += usize::from(lost.to_scalar::<f32>().unwrap() == 0.0);
            assert!(name.ends_with("k_proj.bias") || moved.to_scalar::<f32>().unwrap() > 0.0, "{name}");
        }
        assert!(rounded < 3, "{rounded} parameters are bf16 numbers");
    }
}
