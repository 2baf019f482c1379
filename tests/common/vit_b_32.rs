//! A folder that says how large CLIP ViT-B/32 is, without weights, which are drawn then. Its vocabulary is the golden model's.

use std::path::Path;

use serde_json::{Value, json};

/// For `Loader::random_weights`; images have sides of `side` pixels.
pub fn folder(side: usize) -> tempfile::TempDir {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip");
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(golden).expect("golden files") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|ending| ending != "safetensors") {
            std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    let sizes = |heads: u32| {
        let size = 64 * heads;
        json!({ "hidden_size": size, "intermediate_size": 4 * size, "num_attention_heads": heads, "num_hidden_layers": 12 })
    };
    for (tower, heads, more) in [
        ("text_config", 8, json!({ "max_position_embeddings": 77 })),
        ("vision_config", 12, json!({ "image_size": side, "patch_size": 32 })),
    ] {
        let fields = [sizes(heads), more].into_iter().flat_map(|json| json.as_object().cloned().expect("an object"));
        config[tower].as_object_mut().expect("an object").extend(fields);
    }
    config["projection_dim"] = 512.into();
    std::fs::write(&path, config.to_string()).expect("written");
    folder
}
