//! A model in open_clip's layout: the folder it came from said again, or another's model said in its words.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{OpenClip, native, processor, vit};
use crate::Result;
use crate::families::save::{Outgoing, essence, fits_input, gelu};
use crate::families::{Config, Families, Family, FamilySource, Plan, Role};
use crate::logit_scale::LogitConfig;
use crate::model::{ClipConfig, ClipModel, Origin};
use crate::ops::Activation;
use crate::project::ProjectionKind;
use crate::text::{Cleaning, Separator, SpecialTokens, TextTokenizer};
use crate::towers::{
    ImagePooling, ImageTowerConfig, OutputNorm, PooledToken, QueryPoolRow, TextAttention, TextPooling, TextTowerConfig,
    TextTransformerConfig, VitConfig,
};
use crate::weights::{Layout, Renames, Stored, View};

/// What a configuration of this layout is marked with in memory; the file does not say it.
const MARK: &str = "model_type";

/// Whether a model came from this layout.
pub(in crate::families) fn is_its(config: &Value) -> bool {
    config[MARK] == "open_clip"
}

/// The files a model came from, where they still say what it is. Of a CoCa model the contrastive half is left, which open_clip
/// reads as a model with a text tower of its own.
pub(in crate::families) fn as_loaded(model: &ClipModel, origin: &Origin) -> Option<Outgoing> {
    let mut config = origin.config.clone();
    config.as_object_mut()?.remove(MARK);
    let at = |config: &mut Value| config.get("model_cfg").is_some();
    let has_model_cfg = at(&mut config);
    let model_cfg = if has_model_cfg { config.get_mut("model_cfg")? } else { &mut config };
    if model_cfg.as_object_mut()?.remove("multimodal_cfg").is_some() {
        model_cfg["custom_text"] = Value::from(true);
        for half in ["vision_cfg", "text_cfg"] {
            model_cfg[half].as_object_mut()?.remove("output_tokens");
        }
    }
    let path = Path::new(Layout::OpenClip.config_file());
    let now = model.image_encoder().processor().config();
    let vision = Config::new(path, model_cfg["vision_cfg"].clone()).ok()?;
    let then = processor(&Config::new(path, origin.config.clone()).ok()?, &vision).ok()?;
    if *now != then {
        let size = now.output_size().filter(|size| size.height == size.width)?.height;
        if now.output_size() != then.output_size() {
            // Other towers are not resized on loading.
            if vision.has_value("timm_model_name") || vision.is_list("layers") {
                return None;
            }
            model_cfg["vision_cfg"]["image_size"] = Value::from(size);
        }
        config["preprocess_cfg"] = now.to_open_clip().ok()?;
    }
    Some(Outgoing { layout: Layout::OpenClip, config, stored: origin.stored.clone() })
}

/// A model in the words of this layout, if it has them.
///
/// # Errors
/// When its image processor is one that open_clip does not have; the error says how.
pub(in crate::families) fn to_open_clip(model: &ClipModel, folder: &Path) -> Result<Option<Outgoing>> {
    let Some(model_cfg) = model_cfg(model, folder).filter(|_| fits_input(model)) else { return Ok(None) };
    let preprocess_cfg = model.image_encoder().processor().config().to_open_clip()?;
    let config = json!({ "model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg });
    // What the layout cannot say is lost on reading back: then it does not fit.
    let source = FamilySource {
        config: Config::new(Path::new(Layout::OpenClip.config_file()), config.clone())?,
        tensors: None,
        role: Role::Alone,
    };
    let Ok(Plan::Clip(plan)) = OpenClip.plan(&Families::default(), &source) else { return Ok(None) };
    if essence(&plan.config) != essence(model.config()) {
        return Ok(None);
    }
    let stored = stored(model, &plan.text, &plan.image, &plan.heads)?;
    Ok(stored.map(|stored| Outgoing { layout: Layout::OpenClip, config, stored }))
}

fn model_cfg(model: &ClipModel, folder: &Path) -> Option<Value> {
    let config = model.config();
    let TextTowerConfig::TextTransformer(text) = &config.text.tower else { return None };
    let ImageTowerConfig::Vit(image) = &config.image.tower else { return None };
    let ((image_quick, image_gelu), (text_quick, text_gelu)) = (gelu(image.hidden_act)?, gelu(text.hidden_act)?);
    if image_quick != text_quick {
        return None;
    }
    let mut vision_cfg = vision_cfg(image, config.image.pooling)?;
    let mut text_cfg = text_cfg(text, config, model.text_encoder().tokenizer(), folder)?;
    for (cfg, gelu) in [(&mut vision_cfg, image_gelu), (&mut text_cfg, text_gelu)] {
        if let Some(approximate) = gelu {
            cfg.insert("act_kwargs".to_string(), json!({ "approximate": approximate }));
        }
    }
    let mut cfg = Map::from_iter([
        ("embed_dim".to_string(), Value::from(config.projection.embed_dim)),
        ("vision_cfg".to_string(), Value::Object(vision_cfg)),
        ("text_cfg".to_string(), Value::Object(text_cfg)),
    ]);
    if image.hidden_act == Activation::QuickGelu {
        cfg.insert("quick_gelu".to_string(), Value::from(true));
    }
    if text.has_class_token() {
        cfg.insert("custom_text".to_string(), Value::from(true));
    }
    match config.logits {
        LogitConfig::Scale => {}
        LogitConfig::ScaleAndBias => drop(cfg.insert("init_logit_bias".to_string(), Value::from(-10))),
        LogitConfig::Cosine => return None,
    }
    Some(Value::Object(cfg))
}

fn vision_cfg(image: &VitConfig, pooling: ImagePooling) -> Option<Map<String, Value>> {
    let mut cfg = Map::from_iter([
        ("image_size".to_string(), Value::from(image.image_size)),
        ("layers".to_string(), Value::from(image.num_hidden_layers)),
        ("width".to_string(), Value::from(image.hidden_size)),
        ("head_width".to_string(), Value::from(image.hidden_size.checked_div(image.num_attention_heads)?)),
        ("patch_size".to_string(), Value::from(image.patch_size)),
        ("mlp_ratio".to_string(), mlp_ratio(image.hidden_size, image.intermediate_size)?),
    ]);
    let mut say = |name: &str, value: Value| drop(cfg.insert(name.to_string(), value));
    block_cfg(&mut say, image.layer_norm_eps, image.layer_scale, &image.extras);
    if !image.norm_embeddings {
        say("no_ln_pre", Value::from(true));
    }
    match pooling {
        ImagePooling::Mean => say("pool_type", Value::from("avg")),
        ImagePooling::Queries => {
            let pool = image.query_pool?;
            say("attn_pooler_heads", Value::from(pool.num_attention_heads));
            say("attn_pooler_queries", Value::from(pool.num_queries));
            match pool.row {
                QueryPoolRow::First => say("attentional_pool", Value::from(true)),
                QueryPoolRow::MeanWithoutFirst => {
                    say("attentional_pool", Value::from(true));
                    say("pool_type", Value::from("avg"));
                }
                // The tensors of the other queries are not there.
                QueryPoolRow::Parallel => return None,
                QueryPoolRow::Cascade => say("attentional_pool", Value::from("cascade")),
            }
        }
        _ => {}
    }
    if image.output_norm == OutputNorm::AfterPooling {
        say("final_ln_after_pool", Value::from(true));
    }
    Some(cfg)
}

fn text_cfg(
    text: &TextTransformerConfig,
    config: &ClipConfig,
    tokenizer: &TextTokenizer,
    folder: &Path,
) -> Option<Map<String, Value>> {
    let mut cfg = Map::from_iter([
        ("context_length".to_string(), Value::from(text.context_length)),
        ("vocab_size".to_string(), Value::from(text.vocab_size)),
        ("width".to_string(), Value::from(text.hidden_size)),
        ("heads".to_string(), Value::from(text.num_attention_heads)),
        ("layers".to_string(), Value::from(text.num_hidden_layers)),
        ("mlp_ratio".to_string(), mlp_ratio(text.hidden_size, text.intermediate_size)?),
    ]);
    let mut say = |name: &str, value: Value| drop(cfg.insert(name.to_string(), value));
    block_cfg(&mut say, text.layer_norm_eps, text.layer_scale, &text.extras);
    match text.attention {
        TextAttention::Causal | TextAttention::CausalWithoutPadding => {}
        TextAttention::Full => say("no_causal_mask", Value::from(true)),
        TextAttention::CausalWithClassToken { pad_id } => {
            say("embed_cls", Value::from(true));
            say("pad_id", Value::from(pad_id));
        }
        TextAttention::FullWithClassToken { .. } | TextAttention::FullWithoutPadding => return None,
    }
    match (config.text.pooling, text.pooled_token) {
        (TextPooling::Last, _) if text.has_class_token() => {}
        (TextPooling::Last, _) => say("pool_type", Value::from("last")),
        (TextPooling::Cls, _) => say("pool_type", Value::from("first")),
        (TextPooling::Eos, PooledToken::FirstId(id)) if id as usize + 1 != text.vocab_size => {
            say("pool_type", Value::from("eos"));
            say("eos_id", Value::from(id));
        }
        _ => {}
    }
    match config.text_projection.unwrap_or(config.projection).kind {
        ProjectionKind::LinearBias => say("proj_bias", Value::from(true)),
        ProjectionKind::Identity => say("proj_type", Value::from("none")),
        _ => {}
    }
    tokenizer_cfg(&mut say, tokenizer, folder);
    Some(cfg)
}

fn block_cfg(say: &mut impl FnMut(&str, Value), eps: f64, layer_scale: Option<f32>, extras: &[crate::nn::BlockExtra]) {
    if eps != 1e-5 {
        say("norm_kwargs", json!({ "eps": eps }));
    }
    if let Some(start) = layer_scale {
        say("ls_init_value", Value::from(start));
    }
    for (name, extra) in native::EXTRAS {
        if extras.contains(&extra) {
            say(name, Value::from(true));
        }
    }
}

/// Without a word open_clip takes CLIP's own tokenizer; with `hf_tokenizer_name` the one in the folder.
fn tokenizer_cfg(say: &mut impl FnMut(&str, Value), tokenizer: &TextTokenizer, folder: &Path) {
    let is_clips = tokenizer.vocab_size() == 49408 && tokenizer.token_to_id("<|startoftext|>") == Some(49406);
    let rules = tokenizer.rules();
    if !is_clips {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        say("hf_tokenizer_name", Value::from(format!("./{name}")));
    }
    let clean = match rules.cleaning {
        Cleaning::OpenClipCanonicalize | Cleaning::Siglip => Some("canonicalize"),
        Cleaning::OpenClipLower if !is_clips => Some("lower"),
        _ => None,
    };
    let mut kwargs = Map::new();
    if let Some(clean) = clean {
        kwargs.insert("clean".to_string(), Value::from(clean));
    }
    if rules.separator == Separator::Zero {
        kwargs.insert("strip_sep_token".to_string(), Value::from(true));
    }
    if !kwargs.is_empty() {
        say("tokenizer_kwargs", Value::Object(kwargs));
    }
    if rules.special_tokens == SpecialTokens::Clips {
        say("tokenizer_mode", Value::from("clips"));
    }
}

/// A ratio from which open_clip's `int(width * mlp_ratio)` gives `intermediate`.
fn mlp_ratio(width: usize, intermediate: usize) -> Option<Value> {
    let ratios = [0.0, 0.25].map(|more| (intermediate as f64 + more) / width as f64);
    ratios.into_iter().find(|ratio| (width as f64 * ratio) as usize == intermediate).map(Value::from)
}

/// For each parameter how the file holds it, or none where it has no place for one.
fn stored(
    model: &ClipModel,
    text: &Renames,
    image: &Renames,
    heads: &Renames,
) -> Result<Option<BTreeMap<String, Stored>>> {
    // Attention that looks at tokens of another width has three matrices, not one.
    let apart = native::apart(&vit::NAMES)?.within("visual");
    let wide = match &model.config().image.tower {
        ImageTowerConfig::Vit(image) => image.query_pool.is_some_and(|pool| pool.size != image.hidden_size),
        _ => false,
    };
    let place = |name: &str| -> Option<(String, View)> {
        let below = |prefix: &str| name.strip_prefix(prefix)?.strip_prefix('.');
        match (below(ClipConfig::TEXT), below(ClipConfig::IMAGE)) {
            (Some(rest), _) => text.file_name(rest),
            (_, Some(rest)) if wide && rest.starts_with("attention_pool.") => apart.file_name(rest),
            (_, Some(rest)) => image.file_name(rest),
            _ => heads.file_name(name),
        }
    };
    let parameters = model.parameters();
    let stored = parameters.weights().map(|(ours, tensor)| {
        let (name, view) = place(ours)?;
        let mut shape = tensor.dims().to_vec();
        match view {
            View::Transposed => shape.reverse(),
            View::Part { count, .. } => shape[0] *= count,
            View::Whole if ours.ends_with("class_embedding") => shape = vec![shape.iter().product()],
            View::Whole if ours.ends_with("head_scale") => shape = vec![shape.iter().product(), 1, 1],
            View::Whole => {}
        }
        Some((ours.to_string(), Stored { name, shape, view }))
    });
    Ok(stored.collect())
}
