//! Folders of sentence-transformers: a model of transformers, and beside it `modules.json`, which says how its tokens become
//! one row (reference: `base/modules/transformer.py` and `sentence_transformer/modules/pooling.py` of sentence-transformers 6.2).
//!
//! The pooled output of such a folder is the sentence embedding before it is normalised; a `Normalize` module is known and
//! left to whoever wants unit rows. A module that computes something else (`Dense`, …) is refused.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Plan, TextPlan};
use crate::text::Cleaning;
use crate::towers::TextPooling;
use crate::weights::Folder;
use crate::{Error, Result};

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
/// The transformer's own settings, under the names that the library's versions gave the file.
const SETTINGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// Older files have a flag for each mode.
const FLAGS: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// What `modules.json` and the files it leads to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SentenceTransformer {
    /// The folder with the transformer's configuration, weights and tokenizer.
    pub(crate) transformer: PathBuf,
    pooling: Option<TextPooling>,
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

impl SentenceTransformer {
    /// Reads a folder's `modules.json`; `None` where it has none.
    ///
    /// # Errors
    /// When a file is no JSON or holds something of the wrong type, or there is a module, a pooling or a prompt that this crate
    /// does not have.
    pub(crate) fn of(folder: &Folder) -> Result<Option<Self>> {
        let Some(modules) = folder.json(MODULES)? else { return Ok(None) };
        let path = folder.path().join(MODULES);
        let modules = modules.as_array().ok_or_else(|| wrong(&path, "a list of modules"))?;
        let (mut transformer, mut pooling) = (None, None);
        for module in modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str).ok_or_else(|| wrong(&path, key));
            let (class, place) = (text("type")?, inner(folder, &path, text("path")?)?);
            match class.rsplit('.').next().unwrap_or_default() {
                "Transformer" | "CLIPModel" => transformer = transformer.or(Some(place)),
                "Pooling" if pooling.is_none() => pooling = Some(read_pooling(&place)?),
                "Normalize" | "Dropout" => {}
                _ => {
                    let file = path.display().to_string();
                    return Err(Error::unsupported(
                        file,
                        "module",
                        class,
                        "Transformer, one Pooling, Normalize, Dropout",
                    ));
                }
            }
        }
        let transformer = transformer.ok_or_else(|| wrong(&path, "a Transformer module"))?;
        refuse_prompt(folder)?;
        let inside = Folder::open(&transformer)?;
        let settings = SETTINGS.iter().find_map(|name| Some((name, inside.json(name).transpose()?)));
        let settings = settings.map(|(name, value)| object(&transformer.join(name), value?)).transpose()?;
        let setting = |key: &str| settings.as_ref().and_then(|settings| settings.get(key));
        let max_seq_length = setting("max_seq_length").and_then(Value::as_u64).map(|length| length as usize);
        let do_lower_case = setting("do_lower_case").and_then(Value::as_bool).unwrap_or(false);
        Ok(Some(Self { transformer, pooling, max_seq_length, do_lower_case }))
    }

    /// The plan of the transformer as this folder wants it: its pooling, its length, lower case. A dual encoder stays as it is.
    pub(crate) fn apply(&self, plan: &mut Plan) {
        let Plan::Text(plan) = plan else { return };
        let TextPlan { config, tokens, .. } = &mut **plan;
        config.pooling = self.pooling.unwrap_or(config.pooling);
        tokens.context_length =
            self.max_seq_length.map_or(tokens.context_length, |most| tokens.context_length.min(most));
        if self.do_lower_case {
            tokens.cleaning = Cleaning::Lowercase;
        }
    }
}

/// A module's folder: this one, or one in it.
fn inner(folder: &Folder, modules: &Path, path: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if path.starts_with('.') || !path.chars().all(plain) {
        let message = format!("a module's path is {path:?}, which is no name of a folder in this one");
        return Err(Error::file(modules, message));
    }
    Ok(if path.is_empty() { folder.path().to_path_buf() } else { folder.path().join(path) })
}

fn read_pooling(place: &Path) -> Result<TextPooling> {
    let path = place.join("config.json");
    let config = match place.is_dir() {
        true => Folder::open(place)?.json("config.json")?,
        false => None,
    };
    let config = object(&path, config.ok_or_else(|| Error::file(&path, "is missing; it says how tokens are pooled"))?)?;
    let modes: Vec<String> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.clone()],
        Some(Value::Array(modes)) => modes.iter().map(|mode| mode.as_str().unwrap_or_default().to_string()).collect(),
        Some(_) => return Err(wrong(&path, "pooling_mode, a name or a list of names")),
        None => {
            let set = |(flag, mode): &(&str, &str)| config.get(*flag)?.as_bool()?.then(|| (*mode).to_string());
            FLAGS.iter().filter_map(set).collect()
        }
    };
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["mean"] => Ok(TextPooling::Mean),
        ["cls"] => Ok(TextPooling::Cls),
        ["max"] => Ok(TextPooling::Max),
        ["lasttoken"] => Ok(TextPooling::LastToken),
        _ => {
            let (file, found) = (path.display().to_string(), modes.join(" + "));
            Err(Error::unsupported(file, "pooling_mode", found, "one of mean, cls, max, lasttoken"))
        }
    }
}

/// A prompt that is put before every text unless somebody says otherwise would be left out in silence.
fn refuse_prompt(folder: &Folder) -> Result<()> {
    let Some(config) = folder.json(PROMPTS)? else { return Ok(()) };
    let Some(name) = config.get("default_prompt_name").and_then(Value::as_str) else { return Ok(()) };
    let prompt = config.get("prompts").and_then(|prompts| prompts.get(name)).and_then(Value::as_str);
    match prompt {
        Some("") => Ok(()),
        _ => {
            let file = folder.path().join(PROMPTS).display().to_string();
            Err(Error::unsupported(file, "default_prompt_name", name, "null (put prompts before the texts yourself)"))
        }
    }
}

fn object(path: &Path, value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(wrong(path, "an object")),
    }
}

fn wrong(path: &Path, expected: &str) -> Error {
    Error::file(path, format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOLING: &str = r#"{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}"#;

    fn folder(modules: &str, pooling: &str, settings: &str, prompts: &str) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        let first = r#"{"path": "", "type": "sentence_transformers.models.Transformer"}"#;
        let files = [
            (MODULES, format!("[{first}, {modules}]")),
            ("1_Pooling/config.json", pooling.to_string()),
            ("sentence_bert_config.json", settings.to_string()),
            (PROMPTS, prompts.to_string()),
        ];
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    fn pooling_of(pooling: &str) -> Result<Option<TextPooling>> {
        let (_dir, folder) = folder(POOLING, pooling, "{}", "{}");
        Ok(SentenceTransformer::of(&folder)?.and_then(|found| found.pooling))
    }

    #[test]
    fn each_spelling_of_a_pooling_is_read() -> Result<()> {
        for (mode, expected) in [
            ("cls", TextPooling::Cls),
            ("mean", TextPooling::Mean),
            ("max", TextPooling::Max),
            ("lasttoken", TextPooling::LastToken),
        ] {
            let flag = FLAGS.iter().find(|(_, name)| *name == mode).unwrap().0;
            assert_eq!(pooling_of(&format!(r#"{{"pooling_mode": "{mode}"}}"#))?, Some(expected));
            assert_eq!(pooling_of(&format!(r#"{{"pooling_mode": ["{mode}"]}}"#))?, Some(expected));
            assert_eq!(pooling_of(&format!(r#"{{"{flag}": true, "pooling_mode_x": true}}"#))?, Some(expected));
        }
        assert_eq!(pooling_of("{}")?, Some(TextPooling::Mean));
        Ok(())
    }

    #[test]
    fn combinations_and_other_modules_are_refused_by_name() {
        let says = |result: Result<Option<TextPooling>>, words: &[&str]| {
            let text = result.unwrap_err().to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text:?} should contain {words:?}");
        };
        says(pooling_of(r#"{"pooling_mode": ["cls", "mean"]}"#), &["cls + mean", "1_Pooling"]);
        says(pooling_of(r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}"#), &["cls + max"]);
        says(pooling_of(r#"{"pooling_mode": "weightedmean"}"#), &["weightedmean"]);
        says(pooling_of(r#"{"pooling_mode": 3}"#), &["pooling_mode"]);
        let dense = r#"{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}"#;
        for (modules, prompts, word) in [
            (dense, "{}", "sentence_transformers.models.Dense"),
            (r#"{"path": "../x", "type": "a.Pooling"}"#, "{}", "../x"),
            (r#"{"path": "9_Pooling", "type": "a.Pooling"}"#, "{}", "is missing"),
            (POOLING, r#"{"default_prompt_name": "query", "prompts": {"query": "q: "}}"#, "query"),
        ] {
            let (_dir, folder) = folder(modules, "{}", "{}", prompts);
            says(SentenceTransformer::of(&folder).map(|_| None), &[word]);
        }
    }

    #[test]
    fn settings_are_read_and_a_folder_without_modules_is_none_of_them() -> Result<()> {
        let settings = r#"{"max_seq_length": 128, "do_lower_case": true}"#;
        let (dir, folder) = folder(POOLING, "{}", settings, r#"{"default_prompt_name": null}"#);
        let found = SentenceTransformer::of(&folder)?.unwrap();
        assert_eq!((found.max_seq_length, found.do_lower_case, &*found.transformer), (Some(128), true, dir.path()));
        std::fs::remove_file(dir.path().join(MODULES)).unwrap();
        assert_eq!(SentenceTransformer::of(&folder)?, None);
        Ok(())
    }
}
