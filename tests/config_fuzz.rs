//! Every field of every golden configuration, replaced by what a broken or hostile file would say there: inspecting and loading end
//! in an error or a model, never in a panic, and soon.

mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use common::Golden;
use diptych::Loader;
use serde_json::{Value, json};

/// The longest that one configuration may take, on a machine that does other things too.
const LONGEST: Duration = Duration::from_secs(10);

/// The JSON pointers of everything inside of `value`.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.replace('~', "~0").replace('/', "~1"), v)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let pointer = format!("{at}/{key}");
        pointers(child, &pointer, found);
        found.push(pointer);
    }
}

/// What is put in place of `old`.
fn hostile(old: &Value) -> Vec<Value> {
    match old {
        Value::Number(_) => {
            vec![
                Value::Null,
                json!(-1),
                json!(0),
                json!(1_000_000_000),
                json!(u64::MAX),
                json!("x"),
                json!([]),
                json!({}),
            ]
        }
        Value::String(_) => vec![Value::Null, json!("x"), json!({})],
        _ => vec![Value::Null, json!(-1), json!(1_000_000_000), json!("x"), json!([]), json!({})],
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("readable").map(|entry| entry.expect("readable")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().starts_with("golden.") {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn a_hostile_configuration_ends_in_an_error_soon_and_not_in_a_panic() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    for golden in Golden::all() {
        let dir = temporary.path().join(&golden.name);
        copy(&golden.path, &dir);
        let file = if golden.path.join("config.json").is_file() { "config.json" } else { "open_clip_config.json" };
        let text = std::fs::read_to_string(golden.path.join(file)).expect("readable");
        let whole: Value = serde_json::from_str(&text).expect("JSON");
        let part = |pointer: &str| whole.pointer(pointer).cloned().unwrap_or_default().to_string();
        let family = part("/model_type") + &part("/model_cfg/vision_cfg/timm_model_name");
        let mut found = Vec::new();
        pointers(&whole, "", &mut found);
        // One folder is enough for each field of a family.
        found.retain(|pointer| seen.insert((family.clone(), pointer.clone())));
        for pointer in found {
            for value in hostile(whole.pointer(&pointer).expect("there")) {
                let mut changed = whole.clone();
                *changed.pointer_mut(&pointer).expect("there") = value.clone();
                std::fs::write(dir.join(file), changed.to_string()).expect("written");
                let start = Instant::now();
                let tried = catch_unwind(AssertUnwindSafe(|| {
                    let dir = dir.to_str().expect("UTF-8");
                    let loader = Loader::new().offline(true);
                    let _ = (loader.inspect(dir), loader.load(dir));
                }));
                if tried.is_err() || start.elapsed() > LONGEST {
                    let what = if tried.is_err() { "panicked" } else { "took too long" };
                    problems.push(format!("{}: {pointer} = {value}: {what}", golden.name));
                }
            }
        }
        std::fs::remove_dir_all(&dir).expect("gone");
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}
