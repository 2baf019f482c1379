//! Convolutional image towers beyond their outputs (`tests/golden.rs` compares those): gradients against PyTorch's, running
//! statistics that stay as they are, and towers from nothing but a configuration.

mod common;

use common::{Golden, relative_error};
use diptych::candle::{DType, Device, Tensor};
use diptych::towers::{Collect, ImageTowerConfig};
use diptych::weights::{Params, RandomSource};
use diptych::{ClipModel, Loader};

/// The folders with gradients, and the names of the parameters that have them.
fn goldens() -> Vec<(Golden, Vec<String>)> {
    let with_gradients = |golden: Golden| {
        golden.tensors.contains_key("image.gradient_sums").then(|| {
            let facts = std::fs::read_to_string(golden.path.join("golden.json")).expect("golden.json");
            let facts: serde_json::Value = serde_json::from_str(&facts).expect("JSON");
            let names = facts["gradients"].as_array().expect("a list").iter();
            (golden, names.map(|name| name.as_str().expect("a name").to_string()).collect())
        })
    };
    let goldens: Vec<_> = Golden::all().into_iter().filter_map(with_gradients).collect();
    assert!(goldens.len() >= 9 || std::env::var_os("GOLDEN").is_some(), "{} folders have gradients", goldens.len());
    goldens
}

/// The weights that `make_open_clip_conv_golden.py` weighs with.
fn uneven(count: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 37 + 11) % 23) as f64 / 7.0 - 1.4).collect()
}

fn weighed(t: &Tensor) -> Vec<f64> {
    let values: Vec<f64> = t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).expect("values");
    values.iter().zip(uneven(values.len())).map(|(v, w)| v * w).collect()
}

#[test]
fn every_gradient_of_a_convolutional_tower_is_pytorchs() {
    for (golden, names) in goldens() {
        let encoder = Loader::new().image_encoder(golden.dir()).expect(&golden.name);
        let pooled = encoder.pooled(golden.pixels()).expect(&golden.name);
        let weights = Tensor::from_vec(uneven(pooled.elem_count()), pooled.dims(), &Device::Cpu).expect("weights");
        let loss = (&pooled * weights.to_dtype(DType::F32).expect("f32")).and_then(|t| t.sum_all()).expect("loss");
        let gradients = loss.backward().expect(&golden.name);
        let gradient = |name: &str| {
            let parameter = encoder.parameters().get(name).unwrap_or_else(|| panic!("{}: no {name}", golden.name));
            gradients.get(&parameter).unwrap_or_else(|| panic!("{}: {name} has no gradient", golden.name)).clone()
        };
        let expected: Vec<f32> = golden.tensors["image.gradient_sums"].to_vec1().expect("sums");
        assert_eq!(expected.len(), names.len(), "{}", golden.name);
        let mut found = 0;
        for (name, expected) in names.iter().zip(expected) {
            // Of queries, keys and values in one matrix we have one each.
            let parts: Vec<_> = match name.split_once("qkv") {
                Some((start, end)) => {
                    ["q", "k", "v"].iter().map(|p| gradient(&format!("{start}{p}_proj{end}"))).collect()
                }
                None => vec![gradient(name)],
            };
            found += parts.len();
            let sums = weighed(&Tensor::cat(&parts, 0).expect("parts"));
            let (sum, size) = (sums.iter().sum::<f64>(), sums.iter().map(|v| v.abs()).sum::<f64>());
            let error = (sum - f64::from(expected)).abs();
            // A key's bias has no gradient but what rounding leaves.
            let allowed = if name.ends_with("k_proj.bias") { 1e-4 } else { 5e-5 * size + 1e-9 };
            assert!(error <= allowed, "{}: {name}: {sum}, expected {expected} (of {size} in all)", golden.name);
        }
        assert_eq!(encoder.parameters().trainable().count(), found, "{}: parameters without a sum", golden.name);
    }
}

#[test]
fn running_statistics_are_saved_and_never_trained() {
    for (golden, _) in goldens() {
        let model = ClipModel::from_pretrained(golden.dir()).expect(&golden.name);
        let parameters = model.parameters();
        let buffers: Vec<&str> = parameters.iter().map(|(name, _)| name).filter(|n| parameters.is_buffer(n)).collect();
        let statistics = |name: &str| name.ends_with("running_mean") || name.ends_with("running_var");
        assert_eq!(buffers.is_empty(), golden.name.contains("convnext"), "{}", golden.name);
        assert!(buffers.iter().all(|name| statistics(name)), "{}: {buffers:?}", golden.name);
        let model = model.with_trainable(|_| true).expect(&golden.name);
        assert!(model.trainable().iter().all(|(name, _)| !statistics(name)), "{}", golden.name);
    }
}

#[test]
fn a_saved_model_has_every_tensor_of_the_files_but_the_count_of_batches() {
    for (golden, _) in goldens() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("saved");
        let model = ClipModel::from_pretrained(golden.dir()).expect(&golden.name);
        model.save_pretrained(&path).expect(&golden.name);
        let read = |folder: &std::path::Path| {
            let file = ["open_clip_model.safetensors", "model.safetensors"].map(|name| folder.join(name));
            let file = file.iter().find(|file| file.is_file()).expect("weights");
            diptych::candle::safetensors::load(file, &Device::Cpu).expect("tensors")
        };
        let (before, after) = (read(&golden.path), read(&path));
        // PyTorch counts batches for a momentum that these models do not use; what it does not find it sets to zero.
        let kept = before.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked"));
        for (name, tensor) in kept {
            let saved = after.get(name).unwrap_or_else(|| panic!("{}: {name} is gone", golden.name));
            let same = tensor.to_dtype(DType::F32).expect("f32");
            assert_eq!(
                relative_error(&saved.to_dtype(DType::F32).expect("f32"), &same),
                0.0,
                "{}: {name}",
                golden.name
            );
        }
        assert!(after.keys().all(|name| before.contains_key(name)), "{}", golden.name);
        let again = ClipModel::from_pretrained(path.to_str().expect("UTF-8")).expect(&golden.name);
        let pooled = again.image_encoder().pooled(golden.pixels()).expect(&golden.name);
        golden.check("image_features", &again.project_image(&pooled).expect(&golden.name));
    }
}

#[test]
fn a_convolutional_tower_takes_other_sizes_and_refuses_impossible_ones() {
    for (golden, _) in goldens() {
        let encoder = Loader::new().image_encoder(golden.dir()).expect(&golden.name);
        let pixels = |channels: usize, height: usize, width: usize| {
            Tensor::ones((1, channels, height, width), DType::F32, &Device::Cpu).expect("pixels")
        };
        let output = encoder.forward(&pixels(3, 97, 66), Collect::Last).expect(&golden.name);
        assert_eq!(output.pooled.dims(), [1, encoder.config().pooled_size()], "{}", golden.name);
        assert!(encoder.pooled(&pixels(4, 64, 64)).is_err(), "{}", golden.name);
        assert!(encoder.pooled(&pixels(3, 0, 64)).is_err(), "{}", golden.name);
        if !golden.name.contains("fastvit") {
            assert!(encoder.pooled(&pixels(3, 31, 64)).is_err(), "{}", golden.name);
        }
    }
}

#[test]
fn one_image_gives_what_it_gives_in_a_batch() {
    for (golden, _) in goldens() {
        let encoder = Loader::new().trainable(false).image_encoder(golden.dir()).expect(&golden.name);
        let pooled = encoder.pooled(golden.pixels()).expect(&golden.name);
        let single = encoder.pooled(&golden.pixels().narrow(0, 1, 1).expect("one")).expect(&golden.name);
        assert!(relative_error(&single, &pooled.narrow(0, 1, 1).expect("one")) < 1e-5, "{}", golden.name);
    }
}

#[test]
fn a_tower_is_built_from_its_configuration_as_json() {
    for (golden, _) in goldens() {
        let encoder = Loader::new().image_encoder(golden.dir()).expect(&golden.name);
        let tower = &encoder.config().tower;
        let json = serde_json::to_string(tower).expect(&golden.name);
        let read: ImageTowerConfig = serde_json::from_str(&json).expect(&golden.name);
        assert_eq!(&read, tower, "{json}");
        let params = Params::new(RandomSource::new(5, DType::F32, &Device::Cpu));
        let fresh = read.build(&params, encoder.config().pooling).expect(&golden.name);
        let pooled = fresh.pooled(golden.pixels()).expect(&golden.name);
        assert!(pooled.sum_all().and_then(|t| t.to_scalar::<f32>()).expect("a number").is_finite());
        let names = |parameters: &diptych::weights::Parameters| -> Vec<String> {
            parameters.iter().map(|(name, t)| format!("{name} {:?} {}", t.dims(), parameters.is_buffer(name))).collect()
        };
        assert_eq!(names(&params.finish("fresh").expect("parameters")), names(encoder.parameters()), "{}", golden.name);
    }
}

#[test]
fn sizes_that_no_tower_can_have_are_errors() {
    for (golden, _) in goldens() {
        let encoder = Loader::new().image_encoder(golden.dir()).expect(&golden.name);
        let json = serde_json::to_value(&encoder.config().tower).expect("JSON");
        // Every number of the configuration, one at a time, as nothing and as more than fits any memory.
        let paths = numbers(&json, String::new());
        assert!(paths.len() > 5, "{}", golden.name);
        for path in paths {
            for wrong in [0u64, u64::MAX >> 12] {
                let mut json = json.clone();
                *json.pointer_mut(&path).expect("a place") = wrong.into();
                let Ok(config) = serde_json::from_value::<ImageTowerConfig>(json) else { continue };
                let params = Params::new(RandomSource::new(5, DType::F32, &Device::Cpu));
                let built = config.build(&params, encoder.config().pooling).map(drop);
                let built = built.and_then(|()| params.finish("fresh").map(drop));
                assert!(built.is_err(), "{}: {path} = {wrong}", golden.name);
            }
        }
    }
}

/// JSON pointers to every number of a document.
fn numbers(json: &serde_json::Value, path: String) -> Vec<String> {
    match json {
        serde_json::Value::Number(_) => vec![path],
        serde_json::Value::Array(items) => {
            items.iter().enumerate().flat_map(|(i, item)| numbers(item, format!("{path}/{i}"))).collect()
        }
        serde_json::Value::Object(fields) => {
            fields.iter().flat_map(|(name, value)| numbers(value, format!("{path}/{name}"))).collect()
        }
        _ => Vec::new(),
    }
}
