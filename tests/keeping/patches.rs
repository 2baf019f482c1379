//! Patches that are dropped in training.

use diptych::train::{TrainConfig, Trainer};

use crate::{Setting, config, distance, golden, student, values};

#[test]
fn dropped_patches_depend_on_neither_workers_nor_chunks_and_touch_training_alone() {
    let setting = Setting::new();
    let run = |patch_keep, workers, micro_batch, frozen: bool| {
        let model =
            golden("vtde_vit_bert").with_trainable(|name| !frozen || !name.starts_with("vision_model.")).unwrap();
        let recipe = TrainConfig { patch_keep, workers, micro_batch, augment: "flip".parse().unwrap(), ..config(2) };
        Trainer::new(&model, recipe).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
        model
    };
    let some = run(0.5, 1, None, false);
    assert!(values(&some) == values(&run(0.5, 4, None, false)), "the number of workers matters");
    assert!(distance(&some, &run(0.5, 2, Some(3), false)) < 1e-3);
    assert!(distance(&some, &run(1.0, 1, None, false)) > 1e-3);
    assert!(values(&run(0.5, 1, None, true)) == values(&run(1.0, 1, None, true)), "a frozen tower looks at all");
    let model = student();
    let none = Trainer::new(&model, TrainConfig { patch_keep: 0.0, ..config(1) }).unwrap();
    let error = none.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("patch_keep"), "{error}");
    // A tower that has no patches to do without says so.
    let model = golden("oc_rn").with_trainable(|_| true).unwrap();
    let resnet = Trainer::new(&model, TrainConfig { patch_keep: 0.5, ..config(1) }).unwrap();
    let error = resnet.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("patch_keep"), "{error}");
}
