//! [`Layout`]: which files make a model, by the two conventions that checkpoints are published in.
//!
//! | layout | configuration | weights, best first |
//! |---|---|---|
//! | Hugging Face | `config.json` with a `model_type` | `model.safetensors`, its index, `pytorch_model.bin`, its index |
//! | open_clip | `open_clip_config.json` | `open_clip_model.safetensors`, `open_clip_pytorch_model.bin` |
//!
//! Pickled weights (`.bin`) count only in a build with the feature `pickle`. The names are those of transformers' and
//! open_clip's (`open_clip/constants.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::folder::read_json;
use crate::{Error, Result};

/// The weights where they are in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The list of the files where there are several.
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// What open_clip calls its weights.
pub(super) const OPEN_CLIP_WEIGHTS: &str = "open_clip_model.safetensors";
/// What describes the inputs of a model, and its pooling. Each of them may be missing.
pub(super) const OPTIONAL_FILES: [&str; 16] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];
/// The files that hold a vocabulary: a model that has one of them has a tokenizer.
pub(super) const VOCABULARIES: [&str; 6] =
    ["tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"];
/// How the names of pickled weights end.
const PICKLED: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];

/// Whose conventions a folder follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// `config.json` with a `model_type`, and `model.safetensors` or its shards: transformers' models.
    HuggingFace,
    /// `open_clip_config.json` and `open_clip_model.safetensors`: open_clip's models, timm's among them.
    OpenClip,
}

impl Layout {
    /// The name of the file that describes the model.
    #[must_use]
    pub const fn config_file(self) -> &'static str {
        match self {
            Self::HuggingFace => "config.json",
            Self::OpenClip => "open_clip_config.json",
        }
    }

    /// The name of the file that weights are saved in.
    #[must_use]
    pub const fn weights_file(self) -> &'static str {
        match self {
            Self::HuggingFace => WEIGHTS,
            Self::OpenClip => OPEN_CLIP_WEIGHTS,
        }
    }

    /// The weights among files of which `has` tells whether they are there: the best that this build can read.
    pub(super) fn weights(self, has: impl Fn(&str) -> bool) -> Option<WeightsName> {
        self.all_weights().iter().copied().find(|weights| weights.is_readable() && has(weights.name))
    }

    fn all_weights(self) -> &'static [WeightsName] {
        const fn name(name: &'static str, form: Form, ending: &'static str) -> WeightsName {
            WeightsName { name, form, ending }
        }
        match self {
            Self::HuggingFace => {
                const {
                    &[
                        name(WEIGHTS, Form::Single, ".safetensors"),
                        name(WEIGHTS_INDEX, Form::Index, ".safetensors"),
                        name("pytorch_model.bin", Form::Single, ".bin"),
                        name("pytorch_model.bin.index.json", Form::Index, ".bin"),
                    ]
                }
            }
            Self::OpenClip => {
                const {
                    &[
                        name(OPEN_CLIP_WEIGHTS, Form::Single, ".safetensors"),
                        name("open_clip_pytorch_model.safetensors", Form::Single, ".safetensors"),
                        name("open_clip_pytorch_model.bin", Form::Single, ".bin"),
                    ]
                }
            }
        }
    }
}

/// One file, or the list of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Single,
    Index,
}

/// A file that holds weights, or lists the files that do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WeightsName {
    pub(super) name: &'static str,
    pub(super) form: Form,
    /// How the names of the files end that hold the tensors.
    ending: &'static str,
}

impl WeightsName {
    fn is_readable(self) -> bool {
        cfg!(feature = "pickle") || self.ending == ".safetensors"
    }

    /// Tensor name → file name, from the index at `path`. File names are plain: an index never leads out of its folder.
    pub(super) fn read_map(self, path: &Path) -> Result<BTreeMap<String, String>> {
        let value = read_json(path)?;
        let map = value.get("weight_map").and_then(serde_json::Value::as_object);
        let map = map.ok_or_else(|| Error::file(path, "has no object 'weight_map' from tensor to file names"))?;
        if map.is_empty() {
            return Err(Error::file(path, "lists no tensors: its 'weight_map' is empty"));
        }
        let checked = |(name, shard): (&String, &serde_json::Value)| match shard.as_str() {
            Some(shard) if is_plain(shard) && shard.ends_with(self.ending) => Ok((name.clone(), shard.to_string())),
            _ => Err(Error::file(
                path,
                format!("tensor '{name}': {shard} is not the name of a {} file in this folder", self.ending),
            )),
        };
        map.iter().map(checked).collect()
    }

    /// The files that hold the tensors; each must be one that `has` says is there.
    pub(super) fn shards(self, index: &Path, has: impl Fn(&str) -> bool) -> Result<BTreeSet<String>> {
        let shards: BTreeSet<String> = self.read_map(index)?.into_values().collect();
        let missing: Vec<String> =
            shards.iter().filter(|shard| !has(shard)).map(|shard| format!("'{shard}'")).collect();
        match &missing[..] {
            [] => Ok(shards),
            [one] => Err(Error::file(index, format!("names the file {one}, which is not in the folder"))),
            many => {
                let message = format!(
                    "names {} files, of which {} are not in the folder: {}",
                    shards.len(),
                    many.len(),
                    many.join(", ")
                );
                Err(Error::file(index, message))
            }
        }
    }
}

/// The layout to read where both may be there: Hugging Face's if its configuration has a `model_type` and its weights are
/// there, else open_clip's if it is complete, else whichever has a configuration.
pub(super) fn choose(has: impl Fn(&str) -> bool, model_type: bool) -> Option<Layout> {
    let described = |layout: Layout| has(layout.config_file());
    let complete = |layout: Layout| described(layout) && layout.weights(&has).is_some();
    if model_type && complete(Layout::HuggingFace) {
        return Some(Layout::HuggingFace);
    }
    if complete(Layout::OpenClip) {
        return Some(Layout::OpenClip);
    }
    let open_clip_alone = described(Layout::OpenClip) && !model_type;
    if open_clip_alone {
        return Some(Layout::OpenClip);
    }
    described(Layout::HuggingFace).then_some(Layout::HuggingFace)
}

/// What is said where none of the files `names` are weights of the layout that this build reads.
pub(super) fn no_weights<'a>(layout: Layout, names: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = layout.all_weights().iter().map(|weights| weights.name).collect();
    let is_pickled = |name: &&str| PICKLED.iter().any(|ending| name.ends_with(ending)) && !name.contains('/');
    // Of several the weights themselves, and not what a training program left beside them.
    let place = |name: &&str| known.iter().position(|known| known == name).unwrap_or(known.len());
    let pickled = if cfg!(feature = "pickle") { None } else { names.filter(is_pickled).min_by_key(place) };
    pickled.map_or_else(
        || {
            let known: Vec<&str> =
                layout.all_weights().iter().filter(|weights| weights.is_readable()).map(|w| w.name).collect();
            let (last, others) = known.split_last().unwrap_or((&WEIGHTS, &[]));
            format!("has no weights: neither {} nor {last} is there", others.join(" nor "))
        },
        pickle_only,
    )
}

/// Says why pickled weights are not read and what to do.
pub(super) fn pickle_only(name: &str) -> String {
    format!(
        "only pickle weights ({name}): build with the feature `pickle`, which reads them without running what is in them; \
         or convert them to safetensors, in Python: \
         transformers.AutoModel.from_pretrained(folder).save_pretrained(folder), or pick a revision of the repository that \
         has {WEIGHTS}"
    )
}

/// The files of a tokenizer: those before the image processor's. Each of them may be missing.
#[cfg(feature = "hub")]
pub(super) fn tokenizer_files() -> impl Iterator<Item = &'static str> {
    OPTIONAL_FILES.into_iter().take_while(|file| *file != "preprocessor_config.json")
}

/// Whether `name` is a base name in any file system.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ' | '+' | '=' | ',' | '@' | '(' | ')');
    !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_chosen_by_what_can_be_loaded() {
        let choice = |files: &[&str], model_type: bool| choose(|name| files.contains(&name), model_type);
        let (hf, oc) = (Some(Layout::HuggingFace), Some(Layout::OpenClip));
        let (config, weights) = ("config.json", "model.safetensors");
        let (oc_config, oc_weights) = ("open_clip_config.json", "open_clip_model.safetensors");
        assert_eq!(choice(&[config, weights, oc_config, oc_weights], true), hf);
        // timm's `config.json` has no `model_type`, and `model.safetensors` is the image tower alone.
        assert_eq!(choice(&[config, weights, oc_config, oc_weights], false), oc);
        assert_eq!(choice(&[config, oc_config, oc_weights], true), oc);
        assert_eq!(choice(&[oc_config, weights], false), oc);
        assert_eq!(choice(&[config, weights, oc_config], true), hf);
        assert_eq!(choice(&[config, oc_config], true), hf);
        assert_eq!(choice(&[config], false), hf);
        assert_eq!(choice(&[weights], false), None);
    }
}
