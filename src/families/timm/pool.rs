//! How timm's transformers are pooled, and what the last norm is applied to.

use super::{TimmSource, unsupported};
use crate::Result;
use crate::towers::{ImagePooling, OutputNorm};

/// How timm pools (`global_pool`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    /// The class token.
    Token,
    /// The mean of the patches.
    Average,
    /// Attention with one query.
    Map,
}

/// What an architecture says about pooling.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolRules {
    /// `global_pool` where nobody says otherwise.
    pub(super) default: Pool,
    /// Whether there is a class token.
    pub(super) class_token: bool,
    /// Whether the tower can be built with attention pooling.
    pub(super) map: bool,
    /// Whether a tower built to average norms the mean instead of the tokens (`fc_norm`).
    pub(super) norm_mean: bool,
}

impl PoolRules {
    /// The pooling and what the last norm is applied to. open_clip builds the tower with `timm_pool` where the classifier is
    /// the projection or there is none, else with the architecture's own pooling, which it then replaces by `timm_pool`
    /// unless that is empty (reference: `TimmModel.__init__`).
    pub(super) fn resolve(self, timm: &TimmSource<'_>) -> Result<(ImagePooling, OutputNorm)> {
        let config = &timm.source.config;
        let projected = super::is_projected(timm)?;
        let asked = match timm.pool.as_str() {
            "token" if self.class_token => Some(Pool::Token),
            "avg" => Some(Pool::Average),
            "map" if self.map => Some(Pool::Map),
            "" if projected => None,
            other => {
                let token = if self.class_token { ", token" } else { "" };
                let map = if self.map { ", map" } else { "" };
                return Err(unsupported(config, "timm_pool", other, &format!("avg{token}{map}")));
            }
        };
        let pool = asked.unwrap_or(self.default);
        let built = if projected { self.default } else { pool };
        if pool == Pool::Map && built != Pool::Map {
            return Err(unsupported(config, "timm_pool", "map behind a projection", "avg, token"));
        }
        let pooling = match pool {
            Pool::Token => ImagePooling::Cls,
            Pool::Average => ImagePooling::Mean,
            Pool::Map => ImagePooling::Map,
        };
        let norm = if built == Pool::Average && self.norm_mean { OutputNorm::AfterPooling } else { OutputNorm::Tokens };
        Ok((pooling, norm))
    }
}
