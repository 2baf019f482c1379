//! MPNet as transformers writes it (`modeling_mpnet.py`): BERT's blocks with relative positions besides the absolute ones, and
//! without token types.

use super::bert::{self, Defaults};
use super::{Families, Family, FamilySource, Plan};
use crate::towers::{BertConfig, Positions, RelativePositions};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` mpnet.
pub(super) struct MpNet;

const RULES: [(&str, &str); 11] = [
    ("^mpnet", ""),
    ("embeddings.LayerNorm", "embeddings.layer_norm"),
    ("encoder.layer", "encoder.layers"),
    ("attention.attn.q", "self_attn.q_proj"),
    ("attention.attn.k", "self_attn.k_proj"),
    ("attention.attn.v", "self_attn.v_proj"),
    ("attention.attn.o", "self_attn.out_proj"),
    ("attention.LayerNorm", "layer_norm1"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("output.LayerNorm", "layer_norm2"),
];

/// The class computes with 32 buckets up to distance 128, whatever the configuration says.
const RELATIVE: RelativePositions = RelativePositions { num_buckets: 32, max_distance: 128 };
/// The padding id of the position table is in the code too.
const PADDING: u32 = 1;

impl Family for MpNet {
    fn model_types(&self) -> &[&str] {
        &["mpnet"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let buckets = config.size("relative_attention_num_buckets", RELATIVE.num_buckets)?;
        if buckets != RELATIVE.num_buckets {
            let file = config.path().display().to_string();
            return Err(Error::unsupported(file, "relative_attention_num_buckets", buckets.to_string(), "32"));
        }
        let pooler = source.has_pooler();
        let tower = BertConfig {
            positions: Positions::AfterPadding(PADDING),
            relative_positions: Some(RELATIVE),
            pooler,
            ..bert::base(config, &Defaults { vocab_size: 30527, ..Defaults::BASE })?
        };
        let pooling = bert::pooling(source.role, pooler);
        let renames = Renames::new(&RULES, &bert::EXTRAS)?;
        let pad_id = config.id("pad_token_id", PADDING)?;
        Ok(Plan::Text(Box::new(bert::plan(tower, pooling, renames, pad_id))))
    }
}
