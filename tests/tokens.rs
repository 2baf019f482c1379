//! Token ids equal those of transformers' fast tokenizers, on awkward texts.
//!
//! The bundled tokenizer is always tested. Those of CLIP, RoBERTa and MiniLM are too large to lie in the repository: their
//! tests run where `DIPTYCH_TOKENIZERS` (or `../shared/tokenizers`) holds them as `clip`, `roberta` and `minilm`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diptych::text::{TextTokenizer, TokenRules};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The long texts of `tests/python/make_token_golden.py`.
fn long_text(name: &str) -> String {
    match name {
        "words" => "a dog runs over the green grass . ".repeat(3000),
        "one_word" => "abc".repeat(33334),
        "spaces" => " ".repeat(100_000) + "end",
        "emoji" => "🐱".repeat(25_000),
        other => panic!("no text is called {other}"),
    }
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn check(name: &str, folder: &Path) {
    let golden = std::fs::read(root().join("tests/golden/tokens/ids.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
    let expected = &golden[name];
    let context_length = expected["context_length"].as_u64().unwrap() as usize;
    let tokenizer = TextTokenizer::from_folder(folder, TokenRules::new(context_length)).unwrap();
    assert_eq!(u64::from(tokenizer.pad_id()), expected["pad_id"].as_u64().unwrap());

    for (text, row) in texts.iter().zip(expected["ids"].as_array().unwrap()) {
        let tokens = tokenizer.encode(std::slice::from_ref(text)).unwrap();
        assert_eq!(tokens.ids(), ids(row), "{name}: {text:?}");
        assert!(tokens.keeps_all());
    }
    for (key, row) in expected["long"].as_object().unwrap() {
        let start = Instant::now();
        let tokens = tokenizer.encode(&[long_text(key)]).unwrap();
        assert_eq!(tokens.ids(), ids(row), "{name}: {key}");
        assert!(start.elapsed() < Duration::from_secs(10), "{name}: {key} took {:?}", start.elapsed());
    }
    let batch = tokenizer.encode(&texts[..5]).unwrap();
    let flat = |value: &Value| value.as_array().unwrap().iter().flat_map(ids).collect::<Vec<_>>();
    assert_eq!(batch.ids(), flat(&expected["batch_ids"]));
    assert_eq!(batch.keep().iter().map(|&keep| u32::from(keep)).collect::<Vec<_>>(), flat(&expected["batch_mask"]));
}

/// Checks a vocabulary that may not be here.
fn check_outside(name: &str) {
    let folder =
        std::env::var_os("DIPTYCH_TOKENIZERS").map_or(root().join("../shared/tokenizers"), PathBuf::from).join(name);
    if folder.join("tokenizer.json").is_file() {
        check(name, &folder);
    } else {
        eprintln!("skipped: {} does not hold a tokenizer.json", folder.display());
    }
}

#[test]
fn the_bundled_tokenizer_gives_the_ids_of_transformers() {
    check("tiny", &root().join("assets/tiny"));
}

#[test]
fn clip_gives_the_ids_of_transformers() {
    check_outside("clip");
}

#[test]
fn roberta_gives_the_ids_of_transformers() {
    check_outside("roberta");
}

#[test]
fn minilm_gives_the_ids_of_transformers() {
    check_outside("minilm");
}
