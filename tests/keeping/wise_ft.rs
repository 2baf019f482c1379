//! The line between a model before and after.

use diptych::ClipModel;
use diptych::adapt::LoraConfig;
use diptych::train::{TrainConfig, Trainer, WiseFt};

use crate::common::relative_error;
use crate::{Setting, config, distance, golden, student, values};

#[test]
fn the_line_between_two_models_starts_and_ends_at_them() {
    let setting = Setting::new();
    let model = student();
    let wise = WiseFt::before(&model).unwrap();
    let recipe = TrainConfig { lr: 1e-2, tower_lr: 5e-3, ..config(3) };
    Trainer::new(&model, recipe).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
    let at = |alpha| wise.at(&model, alpha).unwrap();
    assert!(values(&at(0.0)) == values(&student()), "α = 0 is not the model before");
    assert!(values(&at(1.0)) == values(&model), "α = 1 is not the model after");
    assert!(at(0.5).trainable().is_empty());
    for (((name, before), (_, between)), (_, after)) in
        values(&student()).iter().zip(&values(&at(0.25))).zip(&values(&model))
    {
        for ((b, x), a) in before.iter().zip(between).zip(after) {
            assert!((x - (0.75 * b + 0.25 * a)).abs() <= 1e-6 * b.abs().max(a.abs()).max(1e-3), "{name}: {b} {x} {a}");
        }
    }
    assert!(wise.at(&model, 1.5).err().unwrap().to_string().starts_with("alpha"));
    // What was frozen when it was remembered cannot be gone back to.
    let frozen = WiseFt::before(&golden("vtde_vit_bert").with_trainable(|n| n == "logit_scale").unwrap()).unwrap();
    assert!(frozen.at(&model, 0.5).err().unwrap().to_string().contains("was frozen"));
}

#[test]
fn adapters_are_merged_before_the_line_is_drawn() {
    let setting = Setting::new();
    let adapted = || golden("vtde_vit_bert").with_lora(&LoraConfig::new(2).unwrap()).unwrap();
    let model = adapted();
    let wise = WiseFt::before(&model).unwrap();
    let recipe = TrainConfig { lr: 0.05, tower_lr: 0.05, ..config(4) };
    Trainer::new(&model, recipe).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
    let (before, after) = (golden("vtde_vit_bert"), model.clone().merge_lora().unwrap());
    assert!(distance(&after, &before) > 1e-2);
    let half = wise.at(&model, 0.5).unwrap();
    assert_eq!(distance(&wise.at(&model, 0.0).unwrap(), &before), 0.0);
    assert_eq!(distance(&wise.at(&model, 1.0).unwrap(), &after), 0.0);
    let name = "vision_model.encoder.layers.0.self_attn.q_proj.weight";
    let get = |model: &ClipModel| model.parameters().get(name).unwrap();
    let mean = ((get(&before) + get(&after)).unwrap() * 0.5).unwrap();
    assert!(relative_error(&get(&half), &mean) < 1e-6);
}

#[test]
fn a_curve_measures_both_ends_and_every_alpha_once() {
    let model = student();
    let wise = WiseFt::before(&model).unwrap();
    let mut calls = 0;
    let curve = wise.curve(&model, &[0.5, 1.0, 0.5], |_| {
        calls += 1;
        Ok((f64::from(calls), Some(50.0)))
    });
    let curve = curve.unwrap();
    assert_eq!(curve.points.iter().map(|p| p.alpha).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);
    assert_eq!((calls, curve.choose(WiseFt::CANARY_LOSS).unwrap().alpha), (3, 1.0));
    assert!(wise.curve(&model, &[0.5], |_| Ok((f64::NAN, None))).is_err());
    assert!(wise.curve(&model, &[2.0], |_| Ok((1.0, None))).is_err());
}
