//! Models of open_clip's layout go back in it, bit by bit, and models of transformers' CLIP layout go from one to the other.
//!
//! With DIPTYCH_SAVED=folder the folders that are written stay there, for `tests/python/check_saved.py` to read.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::{Golden, relative_error};
use diptych::candle::{DType, Device, Tensor};
use diptych::families::ModelLayout;
use diptych::{ClipModel, ImageEncoder, TextEncoder};

/// A folder that is kept where somebody asks for it, and removed elsewhere.
struct Place {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

fn place(name: &str) -> Place {
    match std::env::var_os("DIPTYCH_SAVED") {
        Some(folder) => Place { path: Path::new(&folder).join(name), _temporary: None },
        None => {
            let folder = tempfile::tempdir().expect("a folder");
            Place { path: folder.path().join(name), _temporary: Some(folder) }
        }
    }
}

fn load(path: &Path) -> ClipModel {
    ClipModel::from_pretrained(path.to_str().expect("UTF-8")).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    diptych::candle::safetensors::load(path, &Device::Cpu).expect("tensors")
}

fn bytes(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()?.to_vec1::<f32>());
    flat.expect("values").into_iter().map(f32::to_bits).collect()
}

fn check_features(golden: &Golden, model: &ClipModel) {
    let output = model.forward(golden.pixels(), &golden.tokens()).expect(&golden.name);
    golden.check("image_features", &output.image_features);
    golden.check("text_features", &output.text_features);
    golden.check("logits_per_image", &output.logits_per_image);
}

fn open_clip_goldens() -> Vec<Golden> {
    let goldens = Golden::all().into_iter();
    goldens.filter(|golden| golden.path.join("open_clip_config.json").is_file()).collect()
}

#[test]
fn a_model_of_this_layout_goes_back_in_it_with_the_same_bytes() {
    for golden in open_clip_goldens() {
        let name = &golden.name;
        let place = place(&format!("{name}.as_loaded"));
        let model = load(&golden.path);
        let before = tensors(&golden.path.join("open_clip_model.safetensors"));
        let half = before.values().any(|tensor| tensor.dtype() == DType::F16);
        model.save_pretrained_as(&place.path, if half { DType::F16 } else { DType::F32 }).expect(name);
        assert!(place.path.join("open_clip_config.json").is_file(), "{name}: saved in another layout");
        assert!(!place.path.join("config.json").exists(), "{name}: has a configuration of another layout");
        let after = tensors(&place.path.join("open_clip_model.safetensors"));
        for (tensor, value) in &before {
            // What only a text decoder reads is not kept.
            if tensor.starts_with("text_decoder.") || name.ends_with("parallel") && tensor.contains("attn_pool.") {
                continue;
            }
            if tensor.ends_with("num_batches_tracked") {
                continue;
            }
            let saved = after.get(tensor).unwrap_or_else(|| panic!("{name}: {tensor} is lost"));
            assert_eq!((value.dims(), value.dtype()), (saved.dims(), saved.dtype()), "{name}: {tensor}");
            assert_eq!(bytes(value), bytes(saved), "{name}: {tensor}");
        }
        assert!(after.keys().all(|tensor| before.contains_key(tensor)), "{name}: tensors of its own");
        check_features(&golden, &load(&place.path));
    }
}

#[test]
fn one_half_of_a_folder_loads_alone() {
    for golden in open_clip_goldens() {
        let pooled = TextEncoder::from_pretrained(golden.dir()).and_then(|text| text.pooled(&golden.tokens()));
        golden.check("text.pooled", &pooled.expect(&golden.name));
        let pooled = ImageEncoder::from_pretrained(golden.dir()).and_then(|image| image.pooled(golden.pixels()));
        golden.check("image.pooled", &pooled.expect(&golden.name));
    }
}

/// A copy of a golden folder of transformers' CLIP whose processor crops to the size it resizes to.
fn clip_for_open_clip(name: &str) -> (tempfile::TempDir, Golden) {
    let golden = Golden::named(name);
    let copy = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(&golden.path).expect("files") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
    }
    let side = load(&golden.path).config().image.tower.image_size();
    let processor = format!(r#"{{"size": {{"shortest_edge": {side}}}, "crop_size": {side}}}"#);
    std::fs::write(copy.path().join("preprocessor_config.json"), processor).expect("written");
    (copy, golden)
}

#[test]
fn transformers_clip_goes_into_open_clips_layout_and_back() {
    for name in ["clip", "clip_gelu_eos2"] {
        let (copy, golden) = clip_for_open_clip(name);
        let (there, back) = (place(&format!("{name}.open_clip")), place(&format!("{name}.hugging_face")));
        load(copy.path()).save_pretrained_in(&there.path, ModelLayout::OpenClip).expect(name);
        let model = load(&there.path);
        check_features(&golden, &model);
        model.save_pretrained_in(&back.path, ModelLayout::HuggingFace).expect(name);
        check_features(&golden, &load(&back.path));
        let (a, b) = (tensors(&copy.path().join("model.safetensors")), tensors(&back.path.join("model.safetensors")));
        assert_eq!(a.len(), b.len(), "{name}");
        for (tensor, value) in &a {
            assert_eq!((value.dims(), bytes(value)), (b[tensor].dims(), bytes(&b[tensor])), "{name}: {tensor}");
        }
    }
}

#[test]
fn what_transformers_has_words_for_goes_there_and_the_rest_is_refused() {
    for golden in open_clip_goldens() {
        let name = golden.name.strip_prefix("open_clip_").unwrap_or(&golden.name);
        let place = place(&format!("{}.hugging_face", golden.name));
        let saved = load(&golden.path).save_pretrained_in(&place.path, ModelLayout::HuggingFace);
        match name {
            "plain" | "quickgelu" | "f16" | "sin_cos" | "siglip" => {
                saved.expect(name);
                check_features(&golden, &load(&place.path));
            }
            "custom_block" | "coca" | "clipa" | "layer_scale" | "attentional_mean" | "resized" | "worldwide" => {
                let error = saved.expect_err(name).to_string();
                assert!(error.contains("HuggingFace"), "{name}: {error}");
            }
            _ => {}
        }
    }
}

#[test]
fn every_model_goes_into_our_own_layout_and_from_there_into_open_clips() {
    for golden in open_clip_goldens().into_iter().filter(|golden| golden.name.starts_with("open_clip_")) {
        let name = &golden.name;
        let (own, back) = (place(&format!("{name}.own")), place(&format!("{name}.again")));
        let model = load(&golden.path);
        model.save_pretrained_in(&own.path, ModelLayout::Diptych).expect(name);
        let again = load(&own.path);
        check_features(&golden, &again);
        match again.save_pretrained_in(&back.path, ModelLayout::OpenClip) {
            Ok(()) => check_features(&golden, &load(&back.path)),
            // Their sizes differ from the input's or from those of timm's names, or tensors that open_clip wants are not there.
            Err(_) if ["resized", "parallel", "_clip_siglip"].iter().any(|end| name.ends_with(end)) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn a_folder_is_overwritten_by_another_layout_with_nothing_left_of_the_first() {
    let (copy, golden) = clip_for_open_clip("clip");
    let model = load(copy.path());
    model.save_pretrained_in(copy.path(), ModelLayout::OpenClip).expect("saved");
    for gone in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        assert!(!copy.path().join(gone).exists(), "{gone} is still there");
    }
    check_features(&golden, &load(copy.path()));
    model.save_pretrained_in(copy.path(), ModelLayout::HuggingFace).expect("saved");
    for gone in ["open_clip_config.json", "open_clip_model.safetensors"] {
        assert!(!copy.path().join(gone).exists(), "{gone} is still there");
    }
    check_features(&golden, &load(copy.path()));
}

#[test]
fn another_input_size_goes_back_with_the_positions_that_were_read() {
    let golden = Golden::named("open_clip_plain");
    let model = ClipModel::loader().image_size(20).clip(golden.dir()).expect("loaded");
    let place = place("open_clip_plain_at_20");
    model.save_pretrained(&place.path).expect("saved");
    let again = load(&place.path);
    let size = again.image_encoder().processor().config().output_size().map(|size| size.height);
    assert_eq!(size, Some(20));
    let pixels = Tensor::rand(0f32, 1.0, (2, 3, 20, 20), &Device::Cpu).expect("pixels");
    let pooled = |model: &ClipModel| model.image_encoder().pooled(&pixels).expect("pooled");
    assert!(relative_error(&pooled(&again), &pooled(&model)) < 1e-6);
}

#[test]
fn fields_and_values_that_open_clip_does_not_have_are_refused_by_name() {
    let golden = Golden::named("open_clip_plain");
    let cases = [
        ("/model_cfg", "relu", "true"),
        ("/model_cfg/vision_cfg", "input_patchnorm", "true"),
        ("/model_cfg/vision_cfg", "pool_type", "\"none\""),
        ("/model_cfg/vision_cfg", "pos_embed_type", "\"rope\""),
        ("/model_cfg/vision_cfg", "attentional_pool", "\"serial\""),
        ("/model_cfg/vision_cfg", "scaled_cosine_attn", "true"),
        ("/model_cfg/vision_cfg", "mlp_ratio", "-1"),
        ("/model_cfg/vision_cfg", "width", "0"),
        ("/model_cfg/text_cfg", "pool_type", "\"mean\""),
        ("/model_cfg/text_cfg", "norm_kwargs", "{\"bias\": false}"),
        ("/model_cfg/text_cfg", "act_kwargs", "{\"approximate\": \"sigmoid\"}"),
        ("/model_cfg/text_cfg", "block_type", "\"parallel\""),
        ("/model_cfg/text_cfg", "heads", "\"two\""),
        ("/model_cfg/text_cfg", "context_length", "99999999999"),
    ];
    for (place, field, value) in cases {
        let copy = tempfile::tempdir().expect("a folder");
        for file in ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"] {
            std::fs::copy(golden.path.join(file), copy.path().join(file)).expect("copied");
        }
        let path = copy.path().join("open_clip_config.json");
        let text = std::fs::read_to_string(&path).expect("JSON");
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        config.pointer_mut(place).expect(place)[field] = serde_json::from_str(value).expect("a value");
        std::fs::write(&path, config.to_string()).expect("written");
        let error = ClipModel::from_pretrained(copy.path().to_str().expect("UTF-8"));
        let error = error.err().unwrap_or_else(|| panic!("{place}/{field} = {value} is taken")).to_string();
        assert!(error.contains("open_clip_config.json"), "{field} = {value}: {error}");
    }
}
