//! A checkpoint family of your own, outside of the crate: somebody's `config.json` and tensor names, mapped to the towers that
//! are there. To have something to load, the bundled model is first written in the made-up layout "duet".

mod common;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use common::{Outcome, bundled, exit, say};
use diptych::candle::Tensor;
use diptych::families::{ClipPlan, Families, Family, FamilySource, Plan, ProcessorPlan, token_rules};
use diptych::image::ProcessorClass;
use diptych::towers::{BertConfig, ImagePooling, ImageTowerConfig, TextPooling, TextTowerConfig, VitConfig};
use diptych::weights::{Renames, save_safetensors};
use diptych::{ClipConfig, ClipModel, ImageEncoderConfig, LogitConfig, ProjectionConfig, Result, TextEncoderConfig};

/// Load a checkpoint whose layout this crate does not know.
#[derive(Parser)]
struct Args {}

/// The layout "duet": a reader of texts and a viewer of images, whose queries, keys and values lie in one tensor.
struct Duet;

/// (in the files, here), for both towers.
const BLOCKS: [(&str, &str); 4] = [
    ("blocks", "encoder.layers"),
    ("look.out", "self_attn.out_proj"),
    ("think.wide", "mlp.fc1"),
    ("think.narrow", "mlp.fc2"),
];
const FUSED: (&str, [&str; 3]) = ("look.all", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
const HEADS: [(&str, &str); 3] =
    [("meet.text", "text_projection"), ("meet.image", "visual_projection"), ("warmth", "logit_scale")];

impl Family for Duet {
    fn model_types(&self) -> &[&str] {
        &["duet"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let (reader, viewer) = (config.part("reader")?, config.part("viewer")?);
        let text = BertConfig {
            vocab_size: reader.size("words", 4000)?,
            hidden_size: reader.size("width", 128)?,
            num_hidden_layers: reader.size("depth", 2)?,
            num_attention_heads: reader.size("heads", 4)?,
            intermediate_size: 4 * reader.size("width", 128)?,
            layer_norm_eps: 1e-6,
            max_position_embeddings: reader.size("longest", 64)?,
            type_vocab_size: 1,
            ..BertConfig::default()
        };
        let image = VitConfig {
            hidden_size: viewer.size("width", 192)?,
            num_hidden_layers: viewer.size("depth", 6)?,
            num_attention_heads: viewer.size("heads", 4)?,
            intermediate_size: 4 * viewer.size("width", 192)?,
            layer_norm_eps: 1e-6,
            image_size: viewer.side("photo", 64)?,
            patch_size: viewer.side("patch", 8)?,
            ..VitConfig::default()
        };
        let renames = || Renames::new(&BLOCKS, &[])?.split(FUSED.0, &FUSED.1);
        Ok(Plan::Clip(Box::new(ClipPlan {
            tokens: token_rules(text.max_position_embeddings, 0),
            config: ClipConfig {
                text: TextEncoderConfig { tower: TextTowerConfig::Bert(text), pooling: TextPooling::Mean },
                image: ImageEncoderConfig { tower: ImageTowerConfig::Vit(image), pooling: ImagePooling::Mean },
                projection: ProjectionConfig::linear(config.size("meeting_place", 256)?),
                text_projection: None,
                logits: LogitConfig::Scale,
                matching: None,
            },
            text: renames()?.within("reader"),
            image: renames()?.within("viewer"),
            heads: Renames::new(&HEADS, &["reader.*", "viewer.*"])?,
            processor: ProcessorPlan::Folder(ProcessorClass::Clip),
        })))
    }
}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    exit(run())
}

fn run() -> Outcome<()> {
    let known = bundled("assets/tiny");
    let original = ClipModel::from_pretrained(&known.to_string_lossy())?;
    let folder = std::env::temp_dir().join(format!("duet-{}", std::process::id()));
    write_duet(&original, &known, &folder)?;

    // From here on as with any other checkpoint.
    let families = Families::default().with(Duet);
    let model = ClipModel::loader().families(families).clip(&folder.to_string_lossy());
    std::fs::remove_dir_all(&folder)?;
    let model = model?;
    let photos = ["cat", "rocket"].map(|name| bundled(&format!("assets/photos/{name}.jpg")));
    let captions = ["a cat looks into the camera", "a rocket takes off"];
    let images = model.embed_images(&photos)?;
    say(images.cosine(&model.embed_texts(&captions)?)?)?;
    let same = images.rows().eq(original.embed_images(&photos)?.rows());
    say(format_args!("the same numbers as before it was renamed: {same}"))?;
    if same { Ok(()) } else { Err("the renamed model gives other embeddings".into()) }
}

/// Writes `model` in the made-up layout, with the tokenizer and the processor that lie in `known`.
fn write_duet(model: &ClipModel, known: &Path, folder: &Path) -> Outcome<()> {
    std::fs::create_dir_all(folder)?;
    let config = r#"{
        "model_type": "duet",
        "reader": { "words": 4000, "width": 128, "depth": 2, "heads": 4, "longest": 64 },
        "viewer": { "width": 192, "depth": 6, "heads": 4, "photo": 64, "patch": 8 },
        "meeting_place": 256
    }"#;
    std::fs::write(folder.join("config.json"), config)?;
    for name in ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"] {
        std::fs::copy(known.join(name), folder.join(name))?;
    }
    let parameters = model.parameters();
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (name, tensor) in parameters.iter() {
        if FUSED.1[1..].iter().any(|part| name.contains(part)) {
            continue; // They went into the tensor of the queries.
        }
        let part = |other: &str| parameters.get(&name.replace(FUSED.1[0], other));
        let tensor = match name.contains(FUSED.1[0]) {
            true => Tensor::cat(&FUSED.1.iter().filter_map(|other| part(other)).collect::<Vec<_>>(), 0)?,
            false => tensor.clone(),
        };
        let towers = [("reader", "text_model"), ("viewer", "vision_model"), (FUSED.0, FUSED.1[0])];
        let rules = towers.iter().chain(&BLOCKS).chain(&HEADS);
        tensors.push((rules.fold(name.to_string(), |name, (theirs, ours)| name.replace(ours, theirs)), tensor));
    }
    Ok(save_safetensors(folder.join("model.safetensors"), tensors, &[])?)
}
