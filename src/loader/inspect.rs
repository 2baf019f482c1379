//! What [`Loader::inspect`] finds out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::parameters::Branches;
use super::{Files, Loader};
use crate::families::{ClipPlan, ImagePlan, Plan, ProcessorPlan, TextPlan};
use crate::inspect::{DtypeShare, ImagePart, Inspection, JointPart, TextPart};
use crate::model::ClipConfig;
use crate::text::{TextTokenizer, TokenRules};
use crate::weights::{Checkpoint, CheckpointSource, Parameters, Params, Renames};
use crate::{Quantization, Result};

pub(super) fn inspect(loader: &Loader, plan: Plan, files: &Files) -> Result<Inspection> {
    let family = files.config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
    let quantized = files.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.holds_quantized());
    let mut found = Inspection {
        folder: files.folder.path().to_path_buf(),
        config_file: files.config_file.clone(),
        family: family.to_string(),
        text: None,
        image: None,
        joint: None,
        parameters: 0,
        dtypes: files.checkpoint.as_deref().map(dtypes).unwrap_or_default(),
        quantization: quantized.then_some(Quantization::Int8),
        extras: Vec::new(),
        problems: Vec::new(),
        remarks: Vec::new(),
    };
    if found.dtypes.len() > 1 && !quantized {
        found.remarks.push("the tensors are of several number types; all are converted to one".to_string());
    }
    match plan {
        Plan::Clip(plan) => {
            let ClipPlan { config, text, image, heads, tokens, processor } = *plan;
            let parts = [(ClipConfig::TEXT, &text), (ClipConfig::IMAGE, &image), ("", &heads)];
            let parameters = headers(files, &parts, &mut found, |params| config.collect(params))?;
            found.parameters = parameters.element_count();
            text_part(loader, files, config.text.clone(), &parameters.under(ClipConfig::TEXT), tokens, &mut found);
            image_part(
                loader,
                files,
                config.image.clone(),
                &parameters.under(ClipConfig::IMAGE),
                processor,
                &mut found,
            );
            found.joint = Some(JointPart {
                embed_dim: config.projection.embed_dim,
                image_projection: config.projection,
                text_projection: config.text_projection.unwrap_or(config.projection),
                logits: config.logits,
            });
        }
        Plan::Text(plan) => {
            let TextPlan { config, renames, tokens } = *plan;
            let parameters = headers(files, &[("", &renames)], &mut found, |params| config.build(params).map(drop))?;
            found.parameters = parameters.element_count();
            text_part(loader, files, config, &parameters, tokens, &mut found);
        }
        Plan::Image(plan) => {
            let ImagePlan { config, renames, processor } = *plan;
            let parameters = headers(files, &[("", &renames)], &mut found, |params| config.build(params).map(drop))?;
            found.parameters = parameters.element_count();
            image_part(loader, files, config, &parameters, processor, &mut found);
        }
    }
    Ok(found)
}

fn dtypes(checkpoint: &Checkpoint) -> BTreeMap<String, DtypeShare> {
    let mut shares = BTreeMap::<String, DtypeShare>::new();
    for info in checkpoint.names().filter_map(|name| checkpoint.info(name)) {
        let share = shares.entry(info.dtype.to_string()).or_default();
        let elements: usize = info.shape.iter().product();
        share.tensors += 1;
        share.elements += elements;
        share.bytes += elements * info.dtype.bitsize() / 8;
    }
    shares
}

/// Asks for every parameter by name and shape; notes what is missing, mis-shaped or unused.
fn headers(
    files: &Files,
    parts: &[(&'static str, &Renames)],
    found: &mut Inspection,
    collect: impl Fn(&Params) -> Result<()>,
) -> Result<Parameters> {
    let Some(checkpoint) = &files.checkpoint else { return Ok(Parameters::default()) };
    let source = |renames: &Renames| Arc::new(CheckpointSource::new(checkpoint.clone(), renames).header_only());
    let branches: Vec<_> = parts.iter().map(|(prefix, renames)| (*prefix, source(renames))).collect();
    let params = Params::new(Branches(branches.clone()));
    if let Err(error) = collect(&params) {
        found.problems.push(format!("{}: {error}", files.config_file.display()));
    }
    let (parameters, problems) = params.finish_with_problems();
    found.problems.extend(problems);
    let unused = branches.iter().flat_map(|(_, source)| source.unused());
    found.problems.extend(unused.map(|name| format!("{name}: in the file, but the configuration has no place for it")));
    // What one part knows as an extra may be another part's parameter.
    let read: BTreeSet<String> = branches.iter().flat_map(|(_, source)| source.asked()).collect();
    let extras: BTreeSet<String> = branches.iter().flat_map(|(_, source)| source.extras()).collect();
    found.extras = extras.difference(&read).cloned().collect();
    Ok(parameters)
}

fn text_part(
    loader: &Loader,
    files: &Files,
    config: crate::TextEncoderConfig,
    parameters: &Parameters,
    tokens: TokenRules,
    found: &mut Inspection,
) {
    if config.tower.reads_padding(config.pooling) {
        found.remarks.push("the text tower reads padding as text: rows are padded to the context length".to_string());
    }
    let tokenizer = loader.tokenizer(files, tokens.clone());
    let tokenizer = tokenizer.map_err(|error| found.problems.push(error.to_string())).ok();
    if let Some(tokenizer) = &tokenizer {
        let (rows, known) = (config.tower.vocab_size(), tokenizer.vocab_size());
        if known > rows {
            found.problems.push(format!("the tokenizer knows {known} tokens, the tower {rows}"));
        }
        if tokenizer.rules().context_length < tokens.context_length {
            let (of, limit) = (tokens.context_length, tokenizer.rules().context_length);
            found.remarks.push(format!("the tokenizer's files limit texts to {limit} of the tower's {of} tokens"));
        }
    }
    found.text = Some(TextPart {
        pooled_size: config.pooled_size(),
        parameters: parameters.element_count(),
        tokens: tokenizer.as_ref().map_or(tokens, |tokenizer| tokenizer.rules().clone()),
        pad_id: tokenizer.as_ref().map(TextTokenizer::pad_id),
        vocab_size: tokenizer.as_ref().map(TextTokenizer::vocab_size),
        config,
    });
}

fn image_part(
    loader: &Loader,
    files: &Files,
    config: crate::ImageEncoderConfig,
    parameters: &Parameters,
    processor: ProcessorPlan,
    found: &mut Inspection,
) {
    let processor = loader.processor(files, processor).map_err(|error| found.problems.push(error.to_string())).ok();
    let size = processor.as_ref().and_then(|processor| processor.config().output_size());
    let side = config.tower.image_size();
    if let Some(size) = size.filter(|size| (size.height as usize, size.width as usize) != (side, side)) {
        let message =
            format!("images are made {size}, the tower is made for {side}×{side}: positions are interpolated");
        found.remarks.push(message);
    }
    found.image = Some(ImagePart {
        pooled_size: config.pooled_size(),
        parameters: parameters.element_count(),
        processor: processor.map(|processor| processor.config().clone()),
        config,
    });
}
