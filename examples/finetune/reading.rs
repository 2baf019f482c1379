//! How the data is read: names of fields, captions of classes, what may be broken.

use diptych::data::{PairOptions, Tolerance};
use diptych::zero_shot::Template;

/// Options about the data's form.
#[derive(clap::Args)]
pub struct Reading {
    /// The column or field with the image [default: image, filepath, file_name, … whichever is there]
    #[arg(long, value_name = "NAME")]
    image_key: Option<String>,
    /// The column or field with the caption [default: caption, captions, title, text, … whichever is there]
    #[arg(long, value_name = "NAME")]
    caption_key: Option<String>,
    /// The column or field with the split [default: split]
    #[arg(long, value_name = "NAME")]
    split_key: Option<String>,
    /// The caption of a folder's class, with {} for its name; may be given more than once [default: "a photo of a {}"]
    #[arg(long, value_name = "PROMPT")]
    template: Vec<Template>,
    /// Share of rows, and of training images, that may be unusable; they are left out and listed, and three always may
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.01, value_name = "X")]
    max_broken: f64,
    /// MiB of decoded images that are kept in memory between epochs
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    image_cache: u32,
}

impl Reading {
    /// How pairs are read.
    pub fn options(&self) -> PairOptions {
        let mut options = PairOptions { tolerance: self.tolerance(), ..PairOptions::default() };
        for (chosen, keys) in [
            (&self.image_key, &mut options.image_keys),
            (&self.caption_key, &mut options.caption_keys),
            (&self.split_key, &mut options.split_keys),
        ] {
            if let Some(name) = chosen {
                *keys = vec![name.clone()];
            }
        }
        if !self.template.is_empty() {
            options.templates = self.template.clone();
        }
        options
    }

    /// How many bytes of decoded images are kept.
    pub fn image_cache_bytes(&self) -> usize {
        (self.image_cache as usize).saturating_mul(1 << 20)
    }

    /// How many samples may be unusable; with `--max-broken 0`, none.
    pub fn tolerance(&self) -> Tolerance {
        if self.max_broken == 0.0 {
            Tolerance::NONE
        } else {
            Tolerance { share: self.max_broken, ..Tolerance::default() }
        }
    }
}
