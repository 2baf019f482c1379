//! Quantised models are saved and loaded again with equal bits; what is wrong with such a folder is said.

mod common;
#[path = "common/vit_b_32.rs"]
mod vit_b_32;

use std::collections::HashMap;
use std::path::Path;

use common::Golden;
use diptych::candle::{DType, Device, Tensor};
use diptych::families::ModelLayout;
use diptych::ops::{Packing, Weight};
use diptych::text::TokenBatch;
use diptych::{ClipModel, Loaded, Loader, Quantization};
use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, serialize};

fn quantised(folder: &str) -> ClipModel {
    Loader::new().quantize(Quantization::Int8).clip(folder).unwrap_or_else(|error| panic!("{folder}: {error}"))
}

fn load(folder: &Path) -> diptych::Result<ClipModel> {
    ClipModel::from_pretrained(folder.to_str().expect("UTF-8"))
}

/// The bits of the embeddings of the golden inputs.
fn embeddings(golden: &Golden, model: &ClipModel) -> Vec<u32> {
    let output = golden.clip_output(model);
    let bits = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
    [bits(&output.image_embeds), bits(&output.text_embeds), bits(&output.logits_per_image)]
        .concat()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

fn integers(model: &ClipModel) -> usize {
    let packed = |weight: &Weight| matches!(weight, Weight::Packed(packed) if packed.packing() == Packing::Int8);
    model.parameters().weights().filter(|(_, weight)| packed(weight)).count()
}

fn size(folder: &Path) -> u64 {
    folder.join("model.safetensors").metadata().expect("weights").len()
}

/// A golden model, quantised and saved.
fn saved() -> (tempfile::TempDir, ClipModel) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = quantised(Golden::named("clip").dir());
    model.save_pretrained(folder.path()).expect("saved");
    (folder, model)
}

#[test]
fn every_dual_encoder_quantised_and_saved_loads_with_equal_bits_without_being_asked() {
    let mut families = 0;
    for golden in Golden::all() {
        let Ok(Loaded::Clip(model)) = Loader::new().quantize(Quantization::Int8).load(golden.dir()) else { continue };
        let folder = tempfile::tempdir().expect("a folder");
        model.save_pretrained(folder.path()).unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        let again = load(folder.path()).unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        assert_eq!(integers(&model), integers(&again), "{}", golden.name);
        assert!(embeddings(&golden, &model) == embeddings(&golden, &again), "{}: other bits", golden.name);
        if integers(&model) > 0 {
            families += 1;
            assert!(again.trainable().is_empty(), "{}", golden.name);
            // And so once more.
            let second = tempfile::tempdir().expect("a folder");
            again.save_pretrained(second.path()).expect(&golden.name);
            let bytes = |dir: &Path| std::fs::read(dir.join("model.safetensors")).expect("weights");
            assert!(bytes(folder.path()) == bytes(second.path()), "{}: other bytes", golden.name);
        }
    }
    assert!(families >= 20 || std::env::var_os("GOLDEN").is_some(), "only {families} were quantised");
}

#[test]
fn a_quantised_vit_b_32_points_where_the_floats_point() {
    let folder = vit_b_32::folder(224);
    let name = folder.path().to_str().expect("UTF-8");
    let texts: Vec<Vec<u32>> = (4..20).map(|n| (0..n).map(|i| (i * n) % 100).chain([103]).collect()).collect();
    let texts = TokenBatch::from_rows(&texts, 1).expect("tokens");
    let pixels = Tensor::randn(0f32, 1.0, (4, 3, 224, 224), &Device::Cpu).expect("pixels");
    let rows = |loader: Loader| -> Vec<Vec<f32>> {
        let model = loader.random_weights(7).clip(name).expect("a random model");
        let output = model.forward(&pixels, &texts).expect("forward");
        let rows = |t: &Tensor| t.to_vec2::<f32>().expect("rows");
        [rows(&output.image_embeds), rows(&output.text_embeds)].concat()
    };
    let exact = rows(Loader::new().trainable(false));
    let found = rows(Loader::new().quantize(Quantization::Int8));
    assert_eq!(exact.len(), 20);
    for (row, (exact, found)) in exact.iter().zip(&found).enumerate() {
        let cosine: f32 = exact.iter().zip(found).map(|(a, b)| a * b).sum();
        assert!(cosine >= 0.99, "row {row}: cosine {cosine}");
        assert!(exact != found, "row {row} was not quantised");
    }
}

#[test]
fn a_quantised_folder_is_a_third_of_the_floats_and_says_what_it_is() {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny");
    let (floats, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    ClipModel::from_pretrained(tiny).and_then(|model| model.save_pretrained(floats.path())).expect("floats");
    quantised(tiny).save_pretrained(folder.path()).expect("integers");
    let (small, large) = (size(folder.path()), size(floats.path()));
    assert!(small * 3 <= large, "{small} of {large} bytes");
    let found = Loader::new().inspect(folder.path().to_str().expect("UTF-8")).expect("inspected");
    assert_eq!(found.quantization, Some(Quantization::Int8));
    assert!(found.problems.is_empty() && found.remarks.is_empty(), "{found}");
    assert!(found.to_string().contains("8-bit integers"), "{found}");
    assert_eq!(Loader::new().inspect(tiny).expect("inspected").quantization, None);
}

#[test]
fn other_layouts_refuse_integers_and_take_the_numbers_they_stand_for() {
    let golden = Golden::named("clip");
    let (folder, model) = saved();
    let out = tempfile::tempdir().expect("a folder");
    for layout in [ModelLayout::HuggingFace, ModelLayout::OpenClip] {
        let message = model.save_pretrained_in(out.path(), layout).expect_err("refused").to_string();
        assert!(message.contains("dequantize") && message.contains("save_pretrained_as"), "{message}");
    }
    model.save_pretrained_as(out.path(), DType::F32).expect("floats");
    let floats = load(out.path()).expect("floats");
    assert_eq!(integers(&floats), 0);
    for ((name, a), (_, b)) in floats.parameters().iter().zip(model.parameters().iter()) {
        let values = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
        assert!(values(&a) == values(&b), "{name}");
    }
    let name = folder.path().to_str().expect("UTF-8");
    let trained = Loader::new().dequantize().clip(name).expect("floats");
    assert_eq!(integers(&trained), 0);
    assert!(!trained.trainable().is_empty());
    assert!(embeddings(&golden, &trained) == embeddings(&golden, &floats));
    trained.save_pretrained(out.path()).expect("floats again");
    let config = std::fs::read_to_string(out.path().join("config.json")).expect("config.json");
    assert!(!config.contains("quantization"), "{config}");
    assert_eq!(Loader::new().dtype(DType::F16).clip(name).map(|model| integers(&model)).expect("halves"), 0);
}

type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// What loading says of a quantised folder whose tensors were changed, and what `inspect` does.
fn refusal(change: impl FnOnce(&mut HashMap<String, Stored>)) -> (String, String) {
    let (folder, _) = saved();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: HashMap<String, Stored> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor")));
    std::fs::write(&path, serialize(views, None).expect("bytes")).expect("written");
    let name = folder.path().to_str().expect("UTF-8");
    let inspected = Loader::new().inspect(name).expect("inspected").problems.join("\n");
    (load(folder.path()).err().expect("refused").to_string(), inspected)
}

const WEIGHT: &str = "text_model.encoder.layers.0.mlp.fc1.weight";
const SCALE: &str = "text_model.encoder.layers.0.mlp.fc1.weight_scale";

#[test]
fn scales_that_are_missing_or_of_another_shape_are_named_before_anything_is_read() {
    let (message, inspected) = refusal(|tensors| drop(tensors.remove(SCALE)));
    assert!(message.contains(SCALE) && message.contains("missing"), "{message}");
    assert!(inspected.contains(SCALE) && inspected.contains("missing"), "{inspected}");
    let (message, inspected) = refusal(|tensors| {
        let scale = tensors.get_mut(SCALE).expect("a scale");
        (scale.1, scale.2) = (vec![2], vec![0; 8]);
    });
    assert!(message.contains(WEIGHT) && message.contains("[2]"), "{message}");
    assert!(inspected.contains("[2]"), "{inspected}");
}

#[test]
fn integers_and_scales_out_of_range_are_errors_that_name_file_and_tensor() {
    let (message, inspected) = refusal(|tensors| {
        tensors.get_mut(SCALE).expect("a scale").2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    for part in ["model.safetensors", WEIGHT, "not finite"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(inspected, "");
    let (message, _) = refusal(|tensors| tensors.get_mut(WEIGHT).expect("a weight").2[3] = 0x80);
    for part in ["model.safetensors", WEIGHT, "-128"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_truncated_quantised_file_is_an_error_that_names_it() {
    let (folder, _) = saved();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).expect("written");
        let message = load(folder.path()).err().expect("refused").to_string();
        assert!(message.contains("model.safetensors"), "{length}: {message}");
    }
}

#[test]
fn an_unknown_quantisation_is_refused() {
    let (folder, _) = saved();
    let path = folder.path().join("config.json");
    let config = std::fs::read_to_string(&path).expect("config.json");
    assert!(config.contains("\"quantization\": \"int8\""), "{config}");
    std::fs::write(&path, config.replace("\"int8\"", "\"int3\"")).expect("written");
    let message = load(folder.path()).err().expect("refused").to_string();
    assert!(message.contains("int3") && message.contains("config.json"), "{message}");
}
