//! What the tests share: the golden folders, comparison, tiny models.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::PathBuf;

use diptych::candle::{DType, Device, Tensor};
use diptych::image::NaflexBatch;
use diptych::text::TokenBatch;
use diptych::towers::{Collect, TowerOutput};
use diptych::{ClipModel, ClipOutput, ImageEncoder};

/// The folder of golden checkpoints.
pub fn golden_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// One golden folder: a checkpoint, inputs, and what the reference library computed from them.
pub struct Golden {
    pub name: String,
    pub path: PathBuf,
    pub tensors: HashMap<String, Tensor>,
}

impl Golden {
    /// Every golden checkpoint, sorted by name; with GOLDEN=clip,vit in the environment those whose names begin so.
    pub fn all() -> Vec<Golden> {
        let entries = std::fs::read_dir(golden_root()).expect("tests/golden is there");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
        let has = |path: &PathBuf, file: &str| path.join(file).is_file();
        let is_model = |path: &PathBuf| has(path, "config.json") || has(path, "open_clip_config.json");
        paths.retain(|path| has(path, "golden.safetensors") && is_model(path));
        paths.sort();
        assert!(paths.len() >= 30, "golden folders are missing: {} found", paths.len());
        // open_clip's Hugging Face text towers have numbers of their text half only, and a test of their own.
        paths.retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("open_clip_hf_")));
        let goldens = paths.into_iter().map(Golden::open);
        let Ok(only) = std::env::var("GOLDEN") else { return goldens.collect() };
        goldens.filter(|golden| only.split(',').any(|start| golden.name.starts_with(start))).collect()
    }

    fn open(path: PathBuf) -> Golden {
        let tensors =
            diptych::candle::safetensors::load(path.join("golden.safetensors"), &Device::Cpu).expect("golden");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        Golden { name, path, tensors }
    }

    pub fn named(name: &str) -> Golden {
        Self::open(golden_root().join(name))
    }

    pub fn dir(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    pub fn tokens(&self) -> TokenBatch {
        let mask = self.tensors.get("attention_mask");
        TokenBatch::from_tensors(&self.tensors["input_ids"], mask).expect("token batch")
    }

    pub fn pixels(&self) -> &Tensor {
        &self.tensors["pixel_values"]
    }

    /// The image inputs as patches, where the checkpoint is NaFlex.
    pub fn patches(&self) -> Option<NaflexBatch> {
        let shapes = self.tensors.get("spatial_shapes")?.to_dtype(DType::I64).and_then(|t| t.to_vec2::<i64>());
        let spatial_shapes = shapes.expect("shapes").iter().map(|s| (s[0] as usize, s[1] as usize)).collect();
        let mask = self.tensors["pixel_attention_mask"].to_dtype(DType::U32).expect("a mask");
        Some(NaflexBatch { patches: self.pixels().clone(), mask, spatial_shapes })
    }

    /// What the image tower makes of the golden input, with its graph.
    pub fn image_output(&self, encoder: &ImageEncoder, collect: Collect) -> TowerOutput {
        match self.patches() {
            Some(batch) => encoder.forward_patches(&batch, collect).expect(&self.name),
            None => encoder.forward(self.pixels(), collect).expect(&self.name),
        }
    }

    /// [`ClipModel::forward`] on the golden inputs.
    pub fn clip_output(&self, model: &ClipModel) -> ClipOutput {
        let Some(batch) = self.patches() else {
            return model.forward(self.pixels(), &self.tokens()).expect(&self.name);
        };
        let pooled = model.image_encoder().forward_patches(&batch, Collect::Last).expect(&self.name).pooled;
        let images = model.project_image(&pooled).expect(&self.name);
        let texts = model.text_encoder().pooled(&self.tokens()).expect(&self.name);
        model.output(images, model.project_text(&texts).expect(&self.name)).expect(&self.name)
    }

    /// Asserts that `actual` is the golden tensor `name` within 2e-5 of its largest value; with GOLDEN_ERRORS in the environment
    /// every difference is printed.
    pub fn check(&self, name: &str, actual: &Tensor) {
        let expected = self.tensors.get(name).unwrap_or_else(|| panic!("{}: no golden {name}", self.name));
        let error = relative_error(actual, expected);
        if std::env::var_os("GOLDEN_ERRORS").is_some() {
            eprintln!("{error:.2e} {} {name}", self.name);
        }
        assert!(error < 2e-5, "{}: {name} differs by {error:.2e} of its largest value", self.name);
    }
}

/// The largest difference over the largest expected value.
pub fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims(), "shapes");
    let values =
        |t: &Tensor| -> Vec<f64> { t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).expect("values") };
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs())).max(1e-30);
    let worst = actual.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    worst.fold(0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) }) / largest
}
