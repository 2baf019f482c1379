//! How much memory loading takes: what is kept afterwards and little more, whatever the files hold.
//!
//! An allocator that counts is the whole program's, so this file has one test.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::Golden;
use diptych::candle::DType;
use diptych::{ClipModel, Loader, Quantization};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new are there at the same time.
        add(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What does not grow with the weights: a scratch of rows for each thread, a tokenizer, configurations.
const REST: usize = 3 << 20;

/// Bytes that a model keeps, and the most that there were while it was loaded.
fn load(loader: &Loader, folder: &Path) -> (usize, usize, ClipModel) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let model = loader.clip(folder.to_str().expect("UTF-8")).expect("a model");
    (NOW.load(Ordering::Relaxed) - before, PEAK.load(Ordering::Relaxed) - before, model)
}

/// A folder of 12 million random parameters: a large vocabulary, and towers with layers of ordinary proportions.
fn folder(root: &Path) -> std::path::PathBuf {
    let (plain, out) = (root.join("plain"), root.join("f32"));
    std::fs::create_dir(&plain).expect("a folder");
    for entry in std::fs::read_dir(Golden::named("clip").path).expect("the golden folder") {
        let entry = entry.expect("readable");
        std::fs::copy(entry.path(), plain.join(entry.file_name())).expect("a copy");
    }
    let path = plain.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("config.json")).expect("JSON");
    config["text_config"]["vocab_size"] = 12_000.into();
    for half in ["text_config", "vision_config"] {
        config[half]["hidden_size"] = 256.into();
        config[half]["intermediate_size"] = 1024.into();
        config[half]["num_hidden_layers"] = 6.into();
        config[half]["num_attention_heads"] = 4.into();
    }
    std::fs::write(&path, config.to_string()).expect("written");
    let model = Loader::new().random_weights(1).clip(plain.to_str().expect("UTF-8")).expect("a model");
    model.save_pretrained(&out).expect("saved");
    out
}

#[test]
fn loading_takes_what_the_model_keeps_and_little_more_from_every_kind_of_folder() {
    let root = tempfile::tempdir().expect("a folder");
    let (f32, f16, int8) = (folder(root.path()), root.path().join("f16"), root.path().join("int8"));
    let quantize = Loader::new().quantize(Quantization::Int8);
    load(&Loader::new(), &f32).2.save_pretrained_as(&f16, DType::F16).expect("saved");
    load(&quantize, &f32).2.save_pretrained(&int8).expect("saved");
    let weights = f32.join("model.safetensors").metadata().expect("weights").len() as usize;
    assert!(weights > 45_000_000, "{weights}");
    let plain = Loader::new();
    let frozen = Loader::new().trainable(false);
    // What a model keeps, in parts of the f32 weights: integers are a quarter of the layers, beside f32 tables.
    let cases = [
        ("f32 to train", &plain, &f32, 1.0),
        ("f32 frozen", &frozen, &f32, 1.0),
        ("f16 to train", &plain, &f16, 1.0),
        ("f16 frozen", &frozen, &f16, 1.0),
        ("f16 as f16", &Loader::new().dtype(DType::F16), &f16, 0.5),
        ("f32 quantised", &quantize, &f32, 0.45),
        ("f16 quantised", &quantize, &f16, 0.45),
        ("int8", &plain, &int8, 0.45),
    ];
    for (what, loader, folder, share) in cases {
        let (kept, peak, model) = load(loader, folder);
        println!("{what}: {:.1} MB kept, {:.1} MB at most", kept as f64 / 1e6, peak as f64 / 1e6);
        let expected = weights as f64 * share;
        assert!((kept as f64) < expected * 1.02 + REST as f64, "{what}: keeps {kept} of {expected}");
        assert!((peak as f64) < kept as f64 * 1.05 + REST as f64, "{what}: {peak} bytes to keep {kept}");
        drop(model);
    }
}
