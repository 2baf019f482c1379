//! Token ids equal those of transformers and open_clip, on awkward texts.
//!
//! Small vocabularies of each kind lie in `tests/golden/tokens`.
//! Those of CLIP, RoBERTa and MiniLM are too large to lie in the repository: their
//! tests run where `DIPTYCH_TOKENIZERS` (or `../shared/tokenizers`) holds them as `clip`, `roberta` and `minilm`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diptych::text::{Cleaning, TextTokenizer, TokenRules};
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

/// A file that `make_token_golden.py` wrote.
fn golden(name: &str) -> Value {
    let path = root().join("tests/golden/tokens").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn older_files_of_each_kind_give_the_ids_of_the_references() {
    let golden = golden("kinds.json");
    let texts = strings(&golden["texts"]);
    for case in golden["cases"].as_array().unwrap() {
        let folder = root().join("tests/golden/tokens").join(case["folder"].as_str().unwrap());
        let rules: TokenRules = serde_json::from_value(case["rules"].clone()).unwrap();
        let tokenizer = TextTokenizer::from_folder(&folder, rules.clone()).unwrap();

        // What is saved holds a tokenizer.json, and gives the same ids by it.
        let saved = tempfile::tempdir().unwrap();
        tokenizer.save(saved.path()).unwrap();
        assert!(saved.path().join("tokenizer.json").is_file());
        for file in std::fs::read_dir(&folder).unwrap() {
            let name = file.unwrap().file_name();
            assert_eq!(std::fs::read(folder.join(&name)).unwrap(), std::fs::read(saved.path().join(&name)).unwrap());
        }
        let again = TextTokenizer::from_folder(saved.path(), rules.clone()).unwrap();

        for (text, row) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            let tokens = tokenizer.encode(std::slice::from_ref(text)).unwrap();
            assert_eq!(tokens.ids(), ids(row), "{} {rules:?}: {text:?}", folder.display());
            assert_eq!(again.encode(std::slice::from_ref(text)).unwrap(), tokens, "{text:?}");
        }
    }
}

/// A tokenizer that gives a text back, character by character: its ids are code points.
fn cleaned(cleaning: Cleaning, texts: &[String]) -> Vec<Vec<char>> {
    const ONLY_BYTES: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"BPE","dropout":null,"unk_token":null,
        "continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":true,
        "ignore_merges":false,"vocab":{VOCAB},"merges":[]}}"#;
    let bytes: Vec<_> = (0..256).map(|byte| format!("\"<0x{byte:02X}>\":{byte}")).collect();
    let json = ONLY_BYTES.replace("VOCAB", &bytes.join(","));
    let rules = TokenRules { cleaning, ..TokenRules::new(usize::MAX) };
    let tokenizer = TextTokenizer::from_bytes(json, rules).unwrap();
    let text = |text: &String| {
        // An empty text gives no row; a letter at its end does.
        let tokens = tokenizer.encode(&[text]).map(|tokens| tokens.ids().to_vec()).unwrap_or_default();
        let bytes = tokens.iter().map(|&id| u8::try_from(id).unwrap()).collect();
        String::from_utf8(bytes).unwrap().chars().collect()
    };
    texts.iter().map(text).collect()
}

#[test]
fn cleanings_give_the_texts_of_open_clip() {
    let golden = golden("cleaning.json");
    let rows: Vec<Vec<String>> = serde_json::from_value(golden["rows"].clone()).unwrap();
    let texts: Vec<_> = rows.iter().map(|row| row[0].clone()).collect();
    for (column, name) in strings(&golden["columns"]).iter().enumerate().skip(1) {
        let found = cleaned(Cleaning::from_open_clip(name).unwrap(), &texts);
        for (row, found) in rows.iter().zip(found) {
            assert_eq!(found.iter().collect::<String>(), row[column], "{name}: {:?}", row[0]);
        }
    }
}

#[test]
fn very_long_texts_take_no_more_than_linear_time_and_do_not_panic() {
    let small = |name: &str| root().join("tests/golden/tokens").join(name);
    let cases = [
        ("clip", TokenRules::new(77)),
        ("clip", TokenRules::open_clip(77)),
        ("roberta", TokenRules::new(77)),
        ("bert", TokenRules::new(77)),
        ("xlm_roberta", TokenRules::new(77)),
        ("siglip", TokenRules::siglip(64)),
        ("gemma", TokenRules::siglip2(64)),
    ];
    let parts = [
        "a dog runs . ",
        "abc",
        " ",
        "猫",
        "\u{301}",
        "&amp;",
        "</s><unk>",
        "<start_of_text>",
        "\0",
        "🐱\u{200d}",
        "&",
    ];
    for (name, rules) in cases {
        let tokenizer = TextTokenizer::from_folder(small(name), rules).unwrap();
        for part in parts {
            let text = part.repeat(100_000 / part.len());
            let start = Instant::now();
            let tokens = tokenizer.encode(&[&text]).unwrap();
            assert!(tokens.length() <= 77);
            assert!(start.elapsed() < Duration::from_secs(10), "{name}: {part:?} took {:?}", start.elapsed());
        }
    }
}

#[test]
fn the_head_of_a_long_text_gives_the_ids_of_the_whole() {
    for name in ["clip", "roberta", "bert", "t5"] {
        let folder = root().join("tests/golden/tokens").join(name);
        for start in ["", "Ünïcode <mask>, ", "x ", "  "] {
            let text = format!("{start}{}", "a dog's photo, of 2 cats\n".repeat(2000));
            let long = TextTokenizer::from_folder(&folder, TokenRules::new(30)).unwrap().encode(&[&text]).unwrap();
            let whole = TextTokenizer::from_folder(&folder, TokenRules::new(90_000)).unwrap().encode(&[&text]).unwrap();
            let kept = long.length() - 1;
            assert_eq!(long.ids()[..kept], whole.ids()[..kept], "{name}: {start:?}");
        }
    }
}
