//! Image towers by the names that timm gives them, as open_clip's `TimmModel` builds them: the transformers in [`vit`], [`eva`],
//! [`vitamin`] and [`swin`], the convolutional ones in [`convnext`] and [`fastvit`].
//!
//! What a name fixes stands in each file's table. The shapes of the tensors decide sizes where there are tensors; the number of
//! heads, which no shape tells, is the named architecture's, or what `timm_model_kwargs` in `vision_cfg` says (open_clip does
//! not write it; tests with small towers do).

mod convnext;
mod eva;
mod fastvit;
mod pool;
mod sizes;
mod swin;
mod vit;
mod vitamin;

use super::open_clip::{TimmSource, TimmTower, unsupported};
use crate::Result;
use pool::{Pool, PoolRules};
use sizes::Sizes;

/// One architecture of timm: `Ok(None)` where the name is not one of its own.
pub(super) type Maker = fn(&TimmSource<'_>) -> Result<Option<TimmTower>>;

/// The architectures there are.
pub(super) const MAKERS: [Maker; 6] =
    [vit::tower, eva::tower, vitamin::tower, swin::tower, convnext::tower, fastvit::tower];

/// The names of all of them, for the error of another one.
pub(super) fn names() -> String {
    let names = [vit::names(), eva::names(), vitamin::names(), swin::names(), convnext::names(), fastvit::names()];
    names.concat().join(", ")
}

/// One size of a tensor in the files, else what the name stands for.
fn size(timm: &TimmSource<'_>, tensor: &str, axis: usize, named: usize) -> usize {
    timm.source.shape(tensor).and_then(|shape| shape.get(axis)).copied().unwrap_or(named)
}

/// How many numbered things the files have below `prefix`, else what the name stands for.
fn count(timm: &TimmSource<'_>, prefix: &str, named: usize) -> usize {
    timm.source.count(prefix).filter(|&count| count > 0).unwrap_or(named)
}

/// Whether open_clip puts a projection of its own behind the tower.
fn is_projected(timm: &TimmSource<'_>) -> Result<bool> {
    let config = &timm.source.config;
    Ok(match config.text("timm_proj")?.as_deref() {
        Some("linear" | "mlp") => true,
        None => !config.has("timm_proj"),
        Some(_) => false,
    })
}

/// Refuses another pooling than the mean over the last map, which is the convolutional towers' own: an empty `timm_pool` means
/// the architecture's own only where open_clip adds a projection (reference: `TimmModel.__init__`).
fn require_mean(timm: &TimmSource<'_>) -> Result<()> {
    let config = &timm.source.config;
    let projected = is_projected(timm)?;
    match timm.pool.as_str() {
        "avg" => Ok(()),
        "" if projected => Ok(()),
        other => Err(unsupported(config, "timm_pool", other, "avg")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::families::{Config, FamilySource, Role};
    use crate::towers::{ImagePooling, ImageTowerConfig, VitConfig};

    fn build(name: &str, config: Value, tensors: Option<BTreeMap<&str, &[usize]>>) -> Result<Option<TimmTower>> {
        let config = Config::new(std::path::Path::new("open_clip_config.json"), config)?;
        let pool = config.text("timm_pool")?.unwrap_or_else(|| "avg".to_string());
        let image_size = Some(config.side("image_size", 224)?);
        let source = FamilySource { config, tensors, role: Role::Half };
        let timm = TimmSource { name: name.to_string(), pool, image_size, source };
        MAKERS.iter().find_map(|maker| maker(&timm).transpose()).transpose()
    }

    fn vit(name: &str, config: Value, tensors: Option<BTreeMap<&str, &[usize]>>) -> VitConfig {
        match build(name, config, tensors).unwrap().unwrap().config.tower {
            ImageTowerConfig::Vit(config) => config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_files_the_name_and_what_is_said_of_it_decide() {
        let config = json!({"timm_pool": "map", "timm_proj": "none", "image_size": 384});
        let tower = vit("vit_so400m_patch14_siglip_384", config.clone(), None);
        assert_eq!((tower.hidden_size, tower.num_hidden_layers, tower.intermediate_size), (1152, 27, 4304));
        assert_eq!((tower.image_size, tower.patch_size, tower.num_attention_heads), (384, 14, 16));
        let mut small = config;
        small["timm_model_kwargs"] = json!({"embed_dim": 24, "depth": 2, "num_heads": 3});
        let tower = vit("vit_base_patch16_siglip_384", small.clone(), None);
        assert_eq!((tower.hidden_size, tower.num_hidden_layers, tower.intermediate_size), (24, 2, 96));
        assert_eq!(tower.num_attention_heads, 3);
        small["timm_model_kwargs"] = json!({"patch_size": 3});
        let error = build("vit_base_patch16_siglip_384", small, None).unwrap_err().to_string();
        assert!(error.contains("patch_size") && error.contains("num_heads"), "{error}");
    }

    #[test]
    fn shapes_decide_sizes_and_heads_follow_the_name() {
        let config = json!({"timm_pool": "token", "timm_proj": null, "image_size": 224});
        let shapes: [(&str, &[usize]); 5] = [
            ("blocks.0.attn.proj.weight", &[128, 128]),
            ("blocks.2.norm1.weight", &[128]),
            ("blocks.0.mlp.fc1_x.weight", &[300, 128]),
            ("patch_embed.proj.weight", &[128, 1, 8, 8]),
            ("pos_embed", &[1, 26, 128]),
        ];
        let tower = vit("eva02_base_patch16_clip_224", config.clone(), Some(shapes.into_iter().collect()));
        assert_eq!((tower.hidden_size, tower.num_hidden_layers, tower.intermediate_size), (128, 3, 300));
        // Five by five patches; twelve heads do not divide 128, heads of 64 do.
        assert_eq!((tower.patch_size, tower.image_size, tower.num_channels), (8, 40, 1));
        assert_eq!(tower.num_attention_heads, 2);
        let odd: [(&str, &[usize]); 1] = [("blocks.0.attn.proj.weight", &[100, 100])];
        let error = build("eva02_base_patch16_clip_224", config, Some(odd.into_iter().collect())).unwrap_err();
        assert!(error.to_string().contains("num_heads"), "{error}");
    }

    #[test]
    fn pooling_is_the_configurations_else_the_architectures() {
        let pooling = |name: &str, pool: &str, proj: Value| {
            let config = json!({"timm_pool": pool, "timm_proj": proj});
            build(name, config, None).map(|tower| tower.unwrap().config.pooling)
        };
        assert_eq!(pooling("vitamin_small_224", "", json!("linear")).unwrap(), ImagePooling::Mean);
        assert_eq!(pooling("vit_large_patch14_clip_224", "", json!("linear")).unwrap(), ImagePooling::Cls);
        assert_eq!(pooling("vit_large_patch14_clip_224", "avg", Value::Null).unwrap(), ImagePooling::Mean);
        assert_eq!(pooling("vit_pe_core_tiny_patch16_384", "map", Value::Null).unwrap(), ImagePooling::Map);
        // Tokens instead of a row; no class token; a pooling the tower was not built with; none of timm's.
        for (name, pool, proj) in [
            ("vit_large_patch14_clip_224", "", Value::Null),
            ("vit_base_patch16_siglip_224", "token", Value::Null),
            ("vit_large_patch14_clip_224", "map", json!("linear")),
            ("eva_giant_patch14_224", "abs_attn", json!("linear")),
            ("swin_base_patch4_window7_224", "token", json!("linear")),
        ] {
            let error = pooling(name, pool, proj).unwrap_err().to_string();
            assert!(error.contains("timm_pool") && error.contains("avg"), "{name}: {error}");
        }
        assert!(build("resnet50", json!({}), None).unwrap().is_none());
    }
}
