//! The 144 model configurations of open-clip-torch 3.3.0: the table in `docs/open_clip.md` says what this crate says.
//!
//! "Supported" means: for a checkpoint with exactly the tensors that open_clip's own model has (`open_clip_configs.json`, written
//! by `tests/python/make_open_clip_configs.py`), every tensor is found, has the expected shape, and is used, no parameter is
//! missing, and the configuration alone, without the files, plans the same model. `DIPTYCH_BLESS=1` rewrites the table.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use diptych::families::{Config, Families, FamilySource, Plan, Role};
use diptych::{ErrorKind, Loader};
use serde_json::{Value, json};

const MARK: &str = "<!-- The rest is written by tests/open_clip_configs.rs. -->\n";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `a.{0-2}.{w,v} 3×4` → its names, each with its shape.
fn expand(line: &str) -> Vec<(String, Vec<usize>)> {
    let (name, shape) = line.split_once(' ').unwrap_or((line, ""));
    let shape: Vec<usize> = shape.split('×').filter(|n| !n.is_empty()).map(|n| n.parse().expect("a number")).collect();
    let mut names = vec![name.to_string()];
    while names[0].contains('{') {
        let put = |name: String| {
            let (before, rest) = name.split_once('{').expect("an opening brace");
            let (inner, after) = rest.split_once('}').expect("a closing brace");
            let words: Vec<String> = match inner.split_once('-') {
                Some((first, last)) => {
                    let number = |text: &str| text.parse::<usize>().expect("a number");
                    (number(first)..=number(last)).map(|n| n.to_string()).collect()
                }
                None => inner.split(',').map(str::to_string).collect(),
            };
            words.into_iter().map(|word| format!("{before}{word}{after}")).collect::<Vec<_>>()
        };
        names = names.into_iter().flat_map(put).collect();
    }
    names.into_iter().map(|name| (name, shape.clone())).collect()
}

fn tensors(facts: &Value, config: &Value) -> BTreeMap<String, Vec<usize>> {
    let lists = ["image", "text", "rest"].map(|half| config[half].as_str().expect("a key"));
    let lines = lists.iter().flat_map(|key| facts["tensors"][key].as_array().expect("a list"));
    lines.flat_map(|line| expand(line.as_str().expect("a line"))).collect()
}

/// A safetensors file with these tensors, all zero, that takes no room on the disk.
fn write_sparse(path: &Path, tensors: &BTreeMap<String, Vec<usize>>) {
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = serde_json::to_vec(&header).expect("JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(&header).expect("written");
    file.set_len((8 + header.len() + end) as u64).expect("a sparse file");
}

fn planned(config: &Value) -> diptych::Result<diptych::ClipConfig> {
    let config = Config::new(Path::new("open_clip_config.json"), config.clone())?;
    match Families::default().plan(&FamilySource { config, tensors: None, role: Role::Alone })? {
        Plan::Clip(plan) => Ok(plan.config),
        _ => panic!("no dual encoder"),
    }
}

/// Why this configuration is not supported, in a few words, or none where it is.
fn verdict(name: &str, facts: &Value, config: &Value) -> Option<String> {
    let file = json!({"model_type": "open_clip", "model_cfg": config["model_cfg"], "preprocess_cfg": {}});
    let planned = match planned(&file) {
        Ok(planned) => planned,
        Err(error) => match error.kind() {
            ErrorKind::Unsupported { what, found, .. } => return Some(format!("`{what}` {found}")),
            _ => panic!("{name}: {error}"),
        },
    };
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("open_clip_config.json"), file.to_string()).expect("written");
    let tensors = tensors(facts, config);
    write_sparse(&folder.path().join("open_clip_model.safetensors"), &tensors);
    let found = Loader::new().offline(true).inspect(folder.path().to_str().expect("UTF-8"));
    let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
    let problems: Vec<_> = found.problems.iter().filter(|problem| !problem.contains("tokenizer")).collect();
    assert!(problems.is_empty(), "{name}: {problems:#?}");
    assert_eq!(found.extras, Vec::<String>::new(), "{name}: tensors that are not read");
    assert_eq!(Some(found.parameters as u64), config["numbers"].as_u64(), "{name}: numbers in all tensors");
    assert_eq!(found.image.expect(name).config, planned.image, "{name}: the files change the image tower");
    assert_eq!(found.text.expect(name).config, planned.text, "{name}: the files change the text tower");
    None
}

fn row(name: &str, config: &Value, verdict: Option<&str>) -> String {
    let (vision, text) = (&config["model_cfg"]["vision_cfg"], &config["model_cfg"]["text_cfg"]);
    let image = match (vision["timm_model_name"].as_str(), vision["layers"].is_array()) {
        (Some(name), _) => format!("timm `{name}`"),
        (None, true) => "ResNet".to_string(),
        (None, false) => "ViT".to_string(),
    };
    let text = text["hf_model_name"].as_str().map_or("native".to_string(), |name| format!("`{name}`"));
    let verdict = verdict.map_or("yes".to_string(), |why| format!("no: {why}"));
    format!("| {name} | {image} | {text} | {verdict} |\n")
}

#[test]
fn the_table_says_of_each_configuration_what_the_code_says() {
    let text = std::fs::read_to_string(root().join("tests/open_clip_configs.json")).expect("the facts");
    let facts: Value = serde_json::from_str(&text).expect("JSON");
    let configs = facts["configs"].as_object().expect("configurations");
    let verdicts: Vec<_> = configs.iter().map(|(name, config)| (name, config, verdict(name, &facts, config))).collect();
    let supported = verdicts.iter().filter(|(_, _, verdict)| verdict.is_none()).count();
    let mut table = format!("{MARK}\n{supported} of {} are supported.\n\n", verdicts.len());
    table += "| configuration | image tower | text tower | supported |\n|---|---|---|---|\n";
    table.extend(verdicts.iter().map(|(name, config, verdict)| row(name, config, verdict.as_deref())));

    let path = root().join("docs/open_clip.md");
    let page = std::fs::read_to_string(&path).expect("docs/open_clip.md");
    let (prose, found) = page.split_once(MARK).expect("the mark");
    if std::env::var_os("DIPTYCH_BLESS").is_some() {
        std::fs::write(&path, format!("{prose}{table}")).expect("written");
        return;
    }
    assert_eq!(found, table.strip_prefix(MARK).expect("the mark"), "DIPTYCH_BLESS=1 rewrites docs/open_clip.md");
}
