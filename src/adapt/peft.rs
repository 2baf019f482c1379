//! Adapters in the files of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensors are called `base_model.model.LAYER.lora_A.weight` and `…lora_B.weight`, where LAYER is the layer's name in
//! [`ClipModel::linear_layers`]. For models in transformers' CLIP layout those are transformers' own, so that PEFT's
//! `PeftModel.from_pretrained` reads what is written here and the other way round.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use serde_json::{Value, json};

use crate::weights::{Adapter, save_safetensors, write_atomic};
use crate::{ClipModel, Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// What PEFT can do to an adapter that would change its output here.
const FOREIGN: [&str; 16] = [
    "use_dora",
    "use_qalora",
    "lora_bias",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "use_bdlora",
];

impl ClipModel {
    /// Writes the adapters alone, in PEFT's format, into `folder`; `base` is what PEFT shall find the model under.
    ///
    /// # Errors
    /// When the model has no adapters, they differ in rank or factor, or the folder cannot be written.
    pub fn save_lora(&self, folder: impl AsRef<Path>, base: &str) -> Result<()> {
        let (folder, parameters) = (folder.as_ref(), self.parameters());
        let mut adapters = parameters.adapters();
        let missing = || Error::argument("model", "has no adapters to save");
        let (_, first) = adapters.next().ok_or_else(missing)?;
        if let Some((module, _)) = adapters.find(|(_, other)| *other != first) {
            return Err(Error::argument(
                "model",
                format!("'{module}' has an adapter of another rank or factor than the others"),
            ));
        }
        let modules: Vec<&str> = parameters.adapters().map(|(module, _)| module).collect();
        let config = json!({
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": first.scale * first.rank as f64,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": first.rank,
            "target_modules": modules,
            "task_type": null,
            "use_dora": false,
            "use_rslora": false,
        });
        std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, format!("cannot be made: {e}")))?;
        let tensors =
            modules.iter().flat_map(|module| ["lora_A", "lora_B"].map(|part| format!("{module}.{part}.weight")));
        let tensors = tensors.filter_map(|name| Some((format!("{PREFIX}{name}"), parameters.get(&name)?.clone())));
        save_safetensors(folder.join(WEIGHTS), tensors, &[])?;
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::file(folder, e))?;
        write_atomic(folder.join(CONFIG), |out| out.write_all(text.as_bytes()))
    }

    /// The same model with the adapters that [`ClipModel::save_lora`] or PEFT wrote into `folder`; they alone are trainable.
    ///
    /// # Errors
    /// When a file is missing, the adapters are of a kind that is not supported here, or belong to another model; the error names
    /// the layers.
    pub fn load_lora(self, folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        let text = std::fs::read(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))?;
        let adapter = adapter(&config, &path)?;
        let weights = folder.join(WEIGHTS);
        let found = candle_core::safetensors::load(&weights, &Device::Cpu)
            .map_err(|e| Error::file(&weights, format!("cannot be read: {e}")))?;
        let strip = |name: &str| Some(name.strip_prefix(PREFIX)?.strip_suffix(".lora_A.weight")?.to_string());
        let mut modules: Vec<String> = found.keys().filter_map(|name| strip(name)).collect();
        modules.sort();
        let layers = self.linear_layers();
        let strangers: Vec<&str> =
            modules.iter().filter(|module| !layers.contains(module)).map(String::as_str).take(8).collect();
        if !strangers.is_empty() || modules.is_empty() || found.len() != 2 * modules.len() {
            let message = match strangers[..] {
                [] => format!("has {} tensors, not a lora_A and a lora_B for each layer", found.len()),
                _ => format!("has adapters of layers that this model has not: {}", strangers.join(", ")),
            };
            return Err(Error::file(&weights, message));
        }
        self.with_adapters(&modules.iter().collect::<Vec<_>>(), |module, weight, parameters| {
            let part = |part: &str, shape: [usize; 2]| -> Result<Tensor> {
                let name = format!("{PREFIX}{module}.{part}.weight");
                let tensor = found.get(&name).ok_or_else(|| Error::file(&weights, format!("'{name}' is missing")))?;
                if tensor.dims() != shape {
                    let message = format!("'{name}' has shape {:?}, expected {shape:?}", tensor.dims());
                    return Err(Error::file(&weights, message));
                }
                Ok(Var::from_tensor(&tensor.to_device(weight.device())?.to_dtype(weight.dtype())?)?.into_inner())
            };
            let &[output, input] = weight.dims() else {
                return Err(Error::argument("folder", format!("'{module}' is no matrix: {:?}", weight.dims())));
            };
            let (down, up) = (part("lora_A", [adapter.rank, input])?, part("lora_B", [output, adapter.rank])?);
            parameters.insert_adapter(module, adapter, down, up);
            Ok(())
        })
    }
}

/// Rank and factor of a PEFT configuration.
fn adapter(config: &Value, path: &Path) -> Result<Adapter> {
    let context = || path.display().to_string();
    if config["peft_type"] != "LORA" {
        return Err(Error::unsupported(context(), "peft_type", config["peft_type"].to_string(), "LORA"));
    }
    let set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    if let Some(key) = FOREIGN.into_iter().find(|key| set(&config[*key])) {
        return Err(Error::unsupported(context(), key, config[key].to_string(), "none"));
    }
    if !matches!(config["bias"].as_str(), None | Some("none")) {
        return Err(Error::unsupported(context(), "bias", config["bias"].to_string(), "none"));
    }
    let rank = config["r"].as_u64().filter(|rank| (1..=1 << 16).contains(rank));
    let alpha = config["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite());
    let (Some(rank), Some(alpha)) = (rank, alpha) else {
        return Err(Error::file(path, "needs r, a whole number above 0, and lora_alpha, a number"));
    };
    let below = if config["use_rslora"] == true { (rank as f64).sqrt() } else { rank as f64 };
    Ok(Adapter { rank: rank as usize, scale: alpha / below })
}
