//! What a run leaves for a person beside the model: logs, the report and the model card.

use std::path::{Path, PathBuf};
use std::time::Duration;

use diptych::ClipModel;
use diptych::data::Split;
use diptych::image::{DecodeOptions, ImageInput, decode};
use diptych::report::{AlphaCurve, CardFile, Gallery, ModelCard, ReportPage, RunLog, shown_command};
use diptych::retrieval::RetrievalReport;
use diptych::train::{AdamWConfig, OptimizerConfig, SgdConfig, TrainConfig, TrainData};

use crate::args::Args;
use crate::common::Outcome;
use crate::data::Rows;
use crate::display::{Display, time};

/// How many captions the report shows of the best, and of the worst.
const SHOWN: usize = 8;

/// Where the run is written down.
#[derive(clap::Args)]
pub struct Reports {
    /// A file with one JSON object for each step and each evaluation
    #[arg(long, value_name = "FILE.jsonl")]
    pub log: Option<PathBuf>,
    /// A folder for TensorBoard
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
    /// The report [default: report.html beside the model]
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

impl Reports {
    /// The log that the options ask for.
    pub fn open(&self) -> Outcome<RunLog> {
        let mut log = RunLog::new();
        if let Some(path) = &self.log {
            log = log.json_lines(path)?;
        }
        if let Some(folder) = &self.tensorboard {
            log = log.tensorboard(folder)?;
        }
        Ok(log)
    }
}

/// A run that is over.
pub struct Finished<'a> {
    pub args: &'a Args,
    pub config: &'a TrainConfig,
    pub model: &'a ClipModel,
    pub data: &'a TrainData<'a>,
    pub train: &'a Split,
    pub rows: Rows<'a>,
    pub log: &'a RunLog,
    /// What the rows that are shown say of the model before training.
    pub before: Option<RetrievalReport>,
    /// And of the model that is saved.
    pub after: Option<RetrievalReport>,
    /// What was measured between them, if the model is one of those.
    pub curve: Option<AlphaCurve>,
}

impl Finished<'_> {
    /// Writes the report and the card, where the options ask for them.
    pub fn write(&self, display: &mut Display) -> Outcome<()> {
        if let Some(path) = self.args.report() {
            let gallery = self.gallery(display)?;
            let mut page = ReportPage::new(self.name(), self.log.history()).recipe(self.recipe()).command(command());
            if let Some(before) = self.before {
                page = page.before(before);
            }
            if let Some(after) = self.after {
                page = page.after(after);
            }
            if let Some(curve) = &self.curve {
                page = page.alpha(curve.clone());
            }
            if let Some(gallery) = &gallery {
                page = page.gallery(gallery);
            }
            if self.args.strategy.resume && self.log.history().loss.points().first().is_some_and(|p| p.0 > 1.0) {
                page = page.note("The run went on from a checkpoint; the curves begin there.");
            }
            page.save(&path)?;
            eprintln!("wrote {}", path.display());
        }
        let Some(out) = &self.args.out else { return Ok(()) };
        match self.card().save(out)? {
            CardFile::Readme(path) => eprintln!("wrote {}", path.display()),
            CardFile::Beside(path) => eprintln!("wrote {}; README.md is somebody else's and stays", path.display()),
        }
        Ok(())
    }

    /// The best and worst retrievals of the split that is measured.
    fn gallery(&self, display: &mut Display) -> Outcome<Option<Gallery>> {
        let Some(shown) = self.rows.shown else { return Ok(None) };
        let sources = shown.sources(self.rows.folder);
        let found = if self.rows.other() {
            Some((self.model.embed_images(&sources)?, self.model.embed_texts(&shown.flat_captions().0)?))
        } else {
            self.data.embeddings(self.model, self.config.workers, &mut |event| display.show(event))?
        };
        display.clear();
        let Some((images, captions)) = found else { return Ok(None) };
        let read = |index: usize| decode(&ImageInput::from(&sources[index]), &DecodeOptions::default());
        Ok(Some(Gallery::new(shown, &images, &captions, SHOWN, read)?))
    }

    fn name(&self) -> String {
        let last = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
        self.args.out.as_deref().and_then(last).unwrap_or_else(|| "Fine-tuning".to_string())
    }

    fn card(&self) -> ModelCard {
        let Args { model, text_encoder, image_encoder, data, .. } = self.args;
        let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ModelCard {
            name: self.name(),
            base_models: [model, text_encoder, image_encoder].into_iter().flatten().cloned().collect(),
            data: name,
            data_size: counts(self.train),
            recipe: self.recipe(),
            before: self.before,
            after: self.after,
            command: command(),
        }
    }

    fn recipe(&self) -> Vec<(String, String)> {
        let (args, config) = (self.args, self.config);
        let parameters = self.model.parameters().element_count();
        let trained: usize = self.model.trainable().iter().map(|(_, var)| var.elem_count()).sum();
        let mut rows = vec![
            ("trained on", counts(self.train)),
            ("measured on", self.rows.shown.map_or("nothing".to_string(), counts)),
            ("parameters", format!("{parameters}, {trained} of them trained")),
            ("loss", words(&config.loss)),
            ("epochs and batch", format!("{} epochs, {} pairs a step", config.epochs, config.batch_size)),
            ("rates", format!("{:e} for projections and scale, {:e} for towers", config.lr, config.tower_lr)),
            ("schedule", words(config.schedule)),
            ("optimiser", optimizer(config)),
            ("weight decay", config.weight_decay.to_string()),
            ("seed", config.seed.to_string()),
            ("time", time(Duration::from_secs_f64(self.log.seconds()))),
        ];
        if let Some(rank) = args.strategy.lora {
            rows.push(("adapters", format!("LoRA of rank {rank}")));
        }
        rows.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }
}

/// A choice with its constants, as "warmup_cosine, warmup_steps 5".
fn words(choice: impl serde::Serialize) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(choice) else { return String::new() };
    let word = |(key, value): (&String, &serde_json::Value)| match value.as_str() {
        Some(name) if key == "name" => name.to_string(),
        _ => format!("{key} {value}"),
    };
    fields.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn optimizer(config: &TrainConfig) -> String {
    let clipped = |norm: Option<f64>| norm.map(|norm| format!(", gradients clipped to {norm}")).unwrap_or_default();
    match config.optimizer {
        OptimizerConfig::AdamW(AdamWConfig { beta1, beta2, clip_norm, .. }) => {
            format!("AdamW, β {beta1} and {beta2}{}", clipped(clip_norm))
        }
        OptimizerConfig::Sgd(SgdConfig { momentum, clip_norm, .. }) => {
            format!("gradient descent, momentum {momentum}{}", clipped(clip_norm))
        }
        other => format!("{other:?}"),
    }
}

fn counts(split: &Split) -> String {
    format!("{} images, {} captions", split.image_count(), split.caption_count())
}

/// How this program was called, without the machine's folders.
fn command() -> String {
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    shown_command("finetune", arguments)
}
