//! The model that the options ask for, and which of its parameters are trained.

use diptych::ops::{Packing, Weight};
use diptych::{ClipModel, InputNorm, Loader, ProjectionConfig};

use crate::args::{Args, Project, Tower};
use crate::common::Outcome;

/// The model, with everything trainable.
pub fn build(args: &Args) -> Outcome<ClipModel> {
    let mut loader = args.machine.loader()?;
    if let Some(pooling) = args.text_pool {
        loader = loader.text_pooling(pooling);
    }
    if let Some(pooling) = args.image_pool {
        loader = loader.image_pooling(pooling);
    }
    if let Some(size) = args.image_size {
        loader = loader.image_size(size);
    }
    let for_tower = |tower: Tower| -> Loader {
        if args.random_init.contains(&tower) { loader.clone().random_weights(args.seed) } else { loader.clone() }
    };
    match (&args.model, &args.text_encoder, &args.image_encoder) {
        (Some(model), ..) if args.random_init.is_empty() => Ok(loader.clip(model)?),
        (Some(model), ..) if args.random_init.len() == 2 => Ok(loader.random_weights(args.seed).clip(model)?),
        (Some(_), ..) => Err("--random-init: with --model, give both towers or none".into()),
        (None, Some(text), Some(image)) => {
            let text = for_tower(Tower::Text).text_encoder(text)?;
            let image = for_tower(Tower::Image).image_encoder(image)?;
            Ok(ClipModel::with_projection(text, image, projection(args), args.seed)?)
        }
        _ => Err("give --model, or both --text-encoder and --image-encoder".into()),
    }
}

fn projection(args: &Args) -> ProjectionConfig {
    let width = args.embed_dim.unwrap_or(256);
    let mut projection = match args.project {
        Some(Project::Linear) => ProjectionConfig::linear(width),
        Some(Project::Mlp) | None => ProjectionConfig::mlp(width),
    };
    if let Some(normalize) = args.normalize_inputs {
        projection.input = if normalize { InputNorm::L2 } else { InputNorm::None };
    }
    projection
}

/// Whether any weights are integers.
fn is_quantised(model: &ClipModel) -> bool {
    let integers = |weight: &Weight| matches!(weight, Weight::Packed(packed) if packed.packing() == Packing::Int8);
    model.parameters().weights().any(|(_, weight)| integers(weight))
}

/// The model with what the options freeze frozen, and with adapters where they are asked for.
pub fn freeze(args: &Args, model: ClipModel) -> Outcome<ClipModel> {
    let names = model.parameters();
    for pattern in &args.freeze_params {
        if !names.iter().any(|(name, _)| pattern.matches(name)) {
            let some: Vec<&str> = names.iter().map(|(name, _)| name).take(4).collect();
            return Err(format!(
                "--freeze-params '{pattern}': no parameter has such a name; names are {}, …",
                some.join(", ")
            )
            .into());
        }
    }
    if args.strategy.lora.is_none() && is_quantised(&model) {
        let folders = [&args.model, &args.text_encoder, &args.image_encoder].into_iter().flatten();
        let folders = folders.map(String::as_str).collect::<Vec<_>>().join(" and ");
        return Err(format!(
            "{folders}: the weights are 8-bit integers, which are not trained; make floats of them (`convert {folders} FLOATS \
             --quantize none`) and train those, or train adapters beside them (--lora 8)"
        )
        .into());
    }
    let model = args.strategy.adapt(model)?;
    let trained: Vec<String> = model.trainable().into_iter().map(|(name, _)| name).collect();
    let frozen = |name: &str| {
        let tower = |tower, prefix: &str| args.freeze.contains(&tower) && name.starts_with(prefix);
        tower(Tower::Text, "text_model.")
            || tower(Tower::Image, "vision_model.")
            || args.freeze_params.iter().any(|pattern| pattern.matches(name))
    };
    Ok(model.with_trainable(|name| trained.iter().any(|trained| trained == name) && !frozen(name))?)
}
