//! [`Template`]: a sentence with a place for a label, "a photo of a {}".

use std::str::FromStr;

use crate::{Error, Result};

const PLACE: &str = "{}";

/// A sentence in which `{}` stands for the label.
///
/// # Examples
/// ```
/// # fn main() -> diptych::Result<()> {
/// use diptych::zero_shot::Template;
/// assert_eq!(Template::new("a drawing of a {}")?.prompt("cat"), "a drawing of a cat");
/// assert!(Template::new("a drawing").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// The template of `sentence`, which holds `{}` once or more often.
    ///
    /// # Errors
    /// When the sentence does not hold `{}`: all classes would get the same prompt.
    pub fn new(sentence: impl Into<String>) -> Result<Self> {
        let sentence = sentence.into();
        if sentence.contains(PLACE) {
            return Ok(Self(sentence));
        }
        Err(Error::argument("template", format!("'{sentence}' does not hold {{}}, the place of the label")))
    }

    /// One template: "a photo of a {}".
    #[must_use]
    pub fn photo() -> Vec<Self> {
        vec![Self("a photo of a {}".to_string())]
    }

    /// The seven templates that OpenAI found to work best together on ImageNet (`Prompt_Engineering_for_ImageNet.ipynb` of
    /// the CLIP repository): slower to build a head from than one, and a little more accurate on photos.
    #[must_use]
    pub fn seven() -> Vec<Self> {
        let sentences = [
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ];
        sentences.map(|sentence| Self(sentence.to_string())).to_vec()
    }

    /// The sentence with `label` in its place.
    #[must_use]
    pub fn prompt(&self, label: &str) -> String {
        self.0.replace(PLACE, label)
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(sentence: &str) -> Result<Self> {
        Self::new(sentence)
    }
}

/// The prompts of all labels, label by label: all templates of the first one, then all of the second one. In this order
/// [`ZeroShotHead::from_prompt_embeddings`](crate::zero_shot::ZeroShotHead::from_prompt_embeddings) takes their embeddings.
///
/// # Errors
/// When there is no template, or the labels are none, blank or repeated.
pub fn prompts(labels: &[impl AsRef<str>], templates: &[Template]) -> Result<Vec<String>> {
    super::head::check_labels(labels)?;
    if templates.is_empty() {
        return Err(Error::argument("templates", "the list is empty; at least one template is needed"));
    }
    Ok(labels.iter().flat_map(|label| templates.iter().map(|template| template.prompt(label.as_ref()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_filled_and_braces_in_a_label_stay() {
        let template = Template::new("{}: a photo of a {}").unwrap();
        assert_eq!(template.prompt("sea {} horse"), "sea {} horse: a photo of a sea {} horse");
    }

    #[test]
    fn prompts_come_label_by_label() {
        let templates = ["a {}", "the {}"].map(|sentence| sentence.parse::<Template>().unwrap());
        assert_eq!(prompts(&["cat", "dog"], &templates).unwrap(), ["a cat", "the cat", "a dog", "the dog"]);
    }

    #[test]
    fn unusable_templates_and_labels_are_refused_by_name() {
        let refused = |labels: &[&str], templates: &[Template]| prompts(labels, templates).unwrap_err().to_string();
        assert!(Template::new("a photo").unwrap_err().to_string().contains("'a photo' does not hold {}"));
        assert!(refused(&["cat"], &[]).starts_with("templates: the list is empty"));
        assert!(refused(&[], &Template::photo()).starts_with("labels: the list is empty"));
    }

    #[test]
    fn the_templates_that_are_given_are_valid() {
        for template in Template::photo().into_iter().chain(Template::seven()) {
            assert_eq!(Template::new(template.0.clone()).unwrap(), template);
        }
    }
}
