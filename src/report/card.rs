//! [`ModelCard`]: the `README.md` of a saved model, in the form that the Hugging Face hub reads.
//!
//! Reference: <https://huggingface.co/docs/hub/model-cards>, the front matter's `model-index` in the form of Papers with Code.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::escape::{markdown, yaml};
use super::gallery::file_name;
use super::page::{DIRECTIONS, RECALLS};
use crate::Result;
use crate::retrieval::RetrievalReport;
use crate::weights::write_atomic;

/// What a card says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelCard {
    /// The model's name.
    pub name: String,
    /// The models it began as: hub ids, or folders, of which only the last part is shown.
    pub base_models: Vec<String>,
    /// The data set's name.
    pub data: String,
    /// What else there is to say of the data, as "6000 images, 30000 captions".
    pub data_size: String,
    /// The recipe, as names and values.
    pub recipe: Vec<(String, String)>,
    /// Recall before the first step.
    pub before: Option<RetrievalReport>,
    /// Recall of the model saved.
    pub after: Option<RetrievalReport>,
    /// The command that made it ([`shown_command`]).
    pub command: String,
}

/// Under which name a card was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CardFile {
    /// As the folder's `README.md`.
    Readme(PathBuf),
    /// Beside a `README.md` that somebody else wrote.
    Beside(PathBuf),
}

/// The line by which a card of ours is known.
const OURS: &str = "library_name: diptych";

impl ModelCard {
    /// Writes the card as `README.md` into `folder`, or as `README.diptych.md` where there is a `README.md` that this crate did not
    /// write.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<CardFile> {
        let readme = folder.as_ref().join("README.md");
        let foreign = match std::fs::read(&readme) {
            Ok(bytes) => !String::from_utf8_lossy(&bytes).lines().any(|line| line == OURS),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        };
        let file = if foreign { folder.as_ref().join("README.diptych.md") } else { readme };
        write_atomic(&file, |out| out.write_all(self.markdown().as_bytes()))?;
        Ok(if foreign { CardFile::Beside(file) } else { CardFile::Readme(file) })
    }

    /// The card.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = self.front_matter();
        let _ = write!(out, "\n# {}\n\n", markdown(&self.name));
        out.push_str(
            "A dual encoder: it embeds images and texts in one space. Fine-tuned with diptych.\n\n| | |\n|---|---|\n",
        );
        let bases: Vec<String> = self.base_models.iter().map(|base| markdown(&shown_model(base))).collect();
        let _ = writeln!(out, "| began as | {} |", bases.join(" and "));
        let _ = writeln!(out, "| data | {}, {} |", markdown(&self.data), markdown(&self.data_size));
        for (name, value) in &self.recipe {
            let _ = writeln!(out, "| {} | {} |", markdown(name), markdown(value));
        }
        self.measured(&mut out);
        let _ = write!(
            out,
            "\n## Use\n\n```sh\ncargo run --release --example zero_shot -- --model FOLDER --labels cat,dog PHOTO.jpg\n```\n\n```rust\n\
             let model = diptych::ClipModel::from_pretrained(\"FOLDER\")?;\nlet images = model.embed_images([\"PHOTO.jpg\"])?;\n```\n"
        );
        if !self.command.is_empty() {
            // A fence longer than any in the command.
            let longest = self.command.split(|c| c != '`').map(str::len).max().unwrap_or(0);
            let fence = "`".repeat(longest.max(2) + 1);
            let _ = write!(out, "\n## Made by\n\n{fence}sh\n{}\n{fence}\n", self.command);
        }
        out
    }

    fn front_matter(&self) -> String {
        let mut out =
            format!("---\n{OURS}\npipeline_tag: zero-shot-image-classification\ntags:\n- clip\n- dual-encoder\n");
        let ids: Vec<&String> = self.base_models.iter().filter(|base| is_hub_id(base)).collect();
        if !ids.is_empty() {
            out.push_str("base_model:\n");
            for id in ids {
                let _ = writeln!(out, "- {}", yaml(id));
            }
        }
        if let Some(after) = self.after {
            let (name, data) = (yaml(&self.name), yaml(&self.data));
            let _ = write!(
                out,
                "model-index:\n- name: {name}\n  results:\n  - task:\n      type: image-text-retrieval\n    dataset:\n      \
                 name: {data}\n      type: {data}\n    metrics:\n"
            );
            for (direction, pick) in DIRECTIONS {
                for (k, at) in RECALLS {
                    let metric = format!("{}_{}", direction.replace('→', "_to_"), k.replace("R@", "recall_at_"));
                    let value = at(&pick(&after));
                    let _ = write!(
                        out,
                        "    - type: {metric}\n      name: {}\n      value: {value:.2}\n",
                        yaml(&format!("{direction} {k}, percent"))
                    );
                }
            }
        }
        out + "---\n"
    }

    fn measured(&self, out: &mut String) {
        let Some(after) = self.after else { return };
        let _ = write!(
            out,
            "\n## How well it does\n\nOn {} images and {} captions it was not trained on, in percent:\n\n| | before | after |\n|---|---|---|\n",
            after.images, after.captions
        );
        for (direction, pick) in DIRECTIONS {
            let row = |report: &RetrievalReport| RECALLS.map(|(_, at)| format!("{:.1}", at(&pick(report)))).join(" / ");
            let before = self.before.as_ref().map_or("–".to_string(), row);
            let _ = writeln!(out, "| {direction} R@1 / 5 / 10 | {before} | {} |", row(&after));
        }
    }
}

/// Whether `name` looks like `owner/model` and is no folder here.
fn is_hub_id(name: &str) -> bool {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| good(part)) && !Path::new(name).exists()
}

/// A hub id as it is; of a folder the last part.
fn shown_model(name: &str) -> String {
    if is_hub_id(name) { name.to_string() } else { file_name(name) }
}

/// A command as a shell would take it, with each absolute path shortened to its last part: a report that is passed on does not say where on
/// a machine things lie.
#[must_use]
pub fn shown_command(program: &str, arguments: impl IntoIterator<Item = String>) -> String {
    let shorten = |word: &str| {
        let bytes = word.as_bytes();
        let drive =
            bytes.len() > 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && matches!(bytes[2], b'/' | b'\\');
        if drive || word.starts_with(['/', '\\']) || word.starts_with("~") { file_name(word) } else { word.to_string() }
    };
    let quote = |word: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:@%+".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    let mut words = vec![program.to_string()];
    for argument in arguments {
        words.push(match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => quote(format!("{name}={}", shorten(value))),
            _ => quote(shorten(&argument)),
        });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieval::Recall;

    fn card() -> ModelCard {
        let recall = Recall { r1: 23.456, r5: 50.0, r10: 60.0 };
        let report = RetrievalReport { text_to_image: recall, image_to_text: recall, images: 7, captions: 9 };
        ModelCard {
            name: "my: \"model\" # 1".into(),
            base_models: vec!["openai/clip-vit-base-patch32".into(), "/home/ana/secret/minilm".into()],
            data: "captions.csv".into(),
            data_size: "7 images".into(),
            recipe: vec![("loss|rate".into(), "<b>1e-3</b>".into())],
            before: None,
            after: Some(report),
            command: "finetune --data captions.csv".into(),
        }
    }

    #[test]
    fn the_front_matter_is_yaml_whatever_the_names() {
        let text = card().markdown();
        let (front, body) = text.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
        assert!(front.contains(r#"- name: "my: \"model\" # 1""#), "{front}");
        assert!(front.contains("base_model:\n- \"openai/clip-vit-base-patch32\"\nmodel-index:"), "{front}");
        assert!(front.contains(
            "- type: text_to_image_recall_at_1\n      name: \"text→image R@1, percent\"\n      value: 23.46"
        ));
        // Each line is a key, an item, or both, with a plain or a quoted value, and steps of two spaces.
        for line in front.lines() {
            let item = line.trim_start();
            assert!((line.len() - item.len()).is_multiple_of(2), "{line}");
            let item = item.strip_prefix("- ").unwrap_or(item);
            let value = match item.split_once(": ") {
                Some((key, value)) if !key.starts_with('"') => value,
                _ => item.strip_suffix(':').unwrap_or(item),
            };
            let quoted = serde_json::from_str::<String>(value).is_ok();
            assert!(quoted || value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)), "{line}");
        }
        assert!(!text.contains("/home") && !text.contains("<b>"), "{text}");
        assert!(body.contains("clip-vit-base-patch32 and minilm") && body.contains("loss\\|rate"), "{body}");
        assert!(body.contains("| text→image R@1 / 5 / 10 | – | 23.5 / 50.0 / 60.0 |"), "{body}");
    }

    #[test]
    fn a_readme_of_another_hand_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let readme = folder.path().join("README.md");
        assert_eq!(card().save(&folder).unwrap(), CardFile::Readme(readme.clone()));
        assert_eq!(card().save(&folder).unwrap(), CardFile::Readme(readme.clone()));
        std::fs::write(&readme, "# My notes\n").unwrap();
        assert!(matches!(card().save(&folder).unwrap(), CardFile::Beside(_)));
        assert_eq!(std::fs::read_to_string(&readme).unwrap(), "# My notes\n");
    }

    #[test]
    fn a_command_says_nothing_of_the_machine() {
        let words =
            ["--model", "/home/ana/m", "--data=/srv/x/captions.csv", "--labels", "a cat's, dog", "C:\\Users\\ana\\o"];
        let shown = shown_command("finetune", words.map(String::from));
        assert_eq!(shown, r"finetune --model m --data=captions.csv --labels 'a cat'\''s, dog' o");
        assert_eq!(shown_command("finetune", ["data/captions.csv".to_string()]), "finetune data/captions.csv");
    }
}
