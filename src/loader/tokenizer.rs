//! Whose tokenizer a folder's model has.

use super::{Files, Loader};
use crate::families::tokenizer_repositories;
use crate::text::{TextTokenizer, TokenRules};
use crate::weights::{self, HubOptions, Layout};
use crate::{Error, Result};

impl Loader {
    /// The folder's tokenizer. An open_clip folder may have none: then it is that of the repository that the configuration names,
    /// or CLIP's, from the cache or the hub.
    pub(super) fn tokenizer(&self, files: &Files, rules: TokenRules) -> Result<TextTokenizer> {
        let folder = files.folder.path();
        if files.layout == Layout::HuggingFace || TextTokenizer::is_in(folder) {
            return TextTokenizer::from_folder(folder, rules);
        }
        let ids = tokenizer_repositories(&files.config);
        let hub = HubOptions { revision: HubOptions::default().revision, ..self.hub.clone() };
        let found = weights::resolve_tokenizer(&ids, &hub).map_err(|error| {
            let message = format!(
                "has no tokenizer; copy tokenizer.json (or vocab.json and merges.txt, or the SentencePiece model) and \
                 tokenizer_config.json of {} into it: {error}",
                ids.join(" or ")
            );
            Error::file(folder, message)
        })?;
        TextTokenizer::from_folder(found.path(), rules)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ClipModel;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// The golden folder's files; its tokenizer apart from the others.
    fn apart(name: &str, model: &Path, tokenizer: &Path) {
        std::fs::create_dir_all(tokenizer).expect("a folder");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        for file in ["open_clip_config.json", "open_clip_model.safetensors"] {
            std::fs::copy(golden.join(file), model.join(file)).expect(file);
        }
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(golden.join(file), tokenizer.join(file)).expect(file);
        }
    }

    /// A cache whose repository holds the tokenizer of a golden folder, and a folder with the rest of it.
    fn folders(name: &str, repository: &str) -> (tempfile::TempDir, tempfile::TempDir) {
        let (model, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let repository = cache.path().join(repository);
        apart(name, model.path(), &repository.join("snapshots").join(COMMIT));
        std::fs::create_dir_all(repository.join("refs")).expect("a folder");
        std::fs::write(repository.join("refs/main"), COMMIT).expect("a file");
        (model, cache)
    }

    fn load(model: &Path, cache: &Path) -> Result<ClipModel> {
        let hub = HubOptions { cache_dir: Some(cache.to_path_buf()), ..HubOptions::default() };
        // The revision is the model's and not the tokenizer's.
        Loader::new().hub(hub).offline(true).revision("v2").clip(&model.display().to_string())
    }

    #[test]
    fn a_folder_without_tokenizer_takes_clips_from_the_cache() {
        for repository in ["models--openai--clip-vit-base-patch32", "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"] {
            let (model, cache) = folders("open_clip_quickgelu", repository);
            let found = load(model.path(), cache.path()).expect(repository);
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/open_clip_quickgelu");
            let expected = ClipModel::from_pretrained(&golden.display().to_string()).expect(repository);
            let ids = |model: &ClipModel| model.text_encoder().tokenize(&["a photo of a cat"]).expect(repository);
            assert_eq!(ids(&found).ids(), ids(&expected).ids());
            // What is saved has it.
            let saved = tempfile::tempdir().expect("a folder");
            found.save_pretrained(&saved.path().join("saved")).expect(repository);
            assert!(TextTokenizer::is_in(saved.path().join("saved")));
        }
    }

    #[test]
    fn a_folder_without_tokenizer_takes_the_one_that_its_configuration_names() {
        let (model, cache) = folders("open_clip_native_siglip", "models--here");
        load(model.path(), cache.path()).expect("the configuration names the repository 'here'");
        let (model, cache) = folders("open_clip_native_siglip", "models--openai--clip-vit-base-patch32");
        let error = load(model.path(), cache.path()).err().expect("CLIP's is another").to_string();
        assert!(error.contains("tokenizer.json") && error.contains("of here into it"), "{error}");
    }

    #[test]
    fn without_any_the_error_says_where_to_get_one() {
        let (model, cache) = folders("open_clip_quickgelu", "models--org--other");
        let error = load(model.path(), cache.path()).err().expect("nobody has one").to_string();
        for part in ["has no tokenizer", "tokenizer.json", "openai/clip-vit-base-patch32", "HF_HUB_OFFLINE"] {
            assert!(error.contains(part), "{error}");
        }
        let hub = HubOptions { cache_dir: Some(cache.path().to_path_buf()), ..HubOptions::default() };
        let found =
            Loader::new().hub(hub).offline(true).inspect(&model.path().display().to_string()).expect("inspected");
        assert!(found.problems.iter().any(|problem| problem.contains("has no tokenizer")), "{:?}", found.problems);
    }
}
