//! Who is trained, and how fast: [`Selection`] chooses parameters by name, [`GroupRule`] and layer-wise decay their rates.

use std::str::FromStr;

use crate::model::ClipConfig;
use crate::weights::{Parameters, Pattern};
use crate::{ClipModel, Error, Result};

use super::optimizer::{ParamGroup, decays};
use candle_core::Var;

/// One rule of a [`Selection`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SelectRule {
    /// Names like this are trained.
    Train(Pattern),
    /// Names like this are frozen.
    Freeze(Pattern),
    /// Of each tower (or of the one under this prefix) only the last N blocks, and what stands behind them, are trained.
    LastBlocks {
        /// `text_model`, `vision_model`, or `None` for both.
        tower: Option<&'static str>,
        /// How many.
        count: usize,
    },
}

/// Which parameters are trained: everything, then each rule in turn; the last that speaks of a name decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    rules: Vec<SelectRule>,
}

impl Selection {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The projections, the scale and the bias; both towers are frozen.
    #[must_use]
    pub fn projections() -> Self {
        Self::all().lock(ClipConfig::TEXT).lock(ClipConfig::IMAGE)
    }

    /// Everything but the image tower: locked-image tuning (LiT, Zhai et al. 2022, arXiv 2111.07991).
    #[must_use]
    pub fn lock_image() -> Self {
        Self::all().lock(ClipConfig::IMAGE)
    }

    /// Everything but the text tower.
    #[must_use]
    pub fn lock_text() -> Self {
        Self::all().lock(ClipConfig::TEXT)
    }

    /// Of both towers the last `count` blocks with what stands behind them, and the heads.
    #[must_use]
    pub fn last_blocks(count: usize) -> Self {
        Self::all().with(SelectRule::LastBlocks { tower: None, count })
    }

    /// One rule more.
    #[must_use]
    pub fn with(mut self, rule: SelectRule) -> Self {
        self.rules.push(rule);
        self
    }

    fn lock(self, tower: &str) -> Self {
        match Pattern::new(&format!("{tower}.*")) {
            Ok(pattern) => self.with(SelectRule::Freeze(pattern)),
            Err(_) => self,
        }
    }

    /// Whether the parameter `name` of `parameters` is trained.
    #[must_use]
    pub fn selects(&self, name: &str, parameters: &Parameters) -> bool {
        self.rules.iter().fold(true, |trained, rule| match rule {
            SelectRule::Train(pattern) => trained || pattern.matches(name),
            SelectRule::Freeze(pattern) => trained && !pattern.matches(name),
            SelectRule::LastBlocks { tower, count } => match Depth::of(name, parameters) {
                Some(depth) if tower.is_none_or(|tower| tower == depth.tower) => depth.level + count > depth.levels,
                _ => trained,
            },
        })
    }

    /// `model` with these parameters trained and the others frozen.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if a pattern matches no parameter: a slip of the pen would train the wrong ones.
    pub fn apply(&self, model: ClipModel) -> Result<ClipModel> {
        let parameters = model.parameters();
        for rule in &self.rules {
            if let SelectRule::Train(pattern) | SelectRule::Freeze(pattern) = rule
                && !parameters.iter().any(|(name, _)| pattern.matches(name))
            {
                let some: Vec<&str> = parameters.iter().map(|(name, _)| name).take(4).collect();
                let message = format!("'{pattern}' matches no parameter; names are {}, …", some.join(", "));
                return Err(Error::argument("pattern", message));
            }
        }
        model.with_trainable(|name| self.selects(name, &parameters))
    }
}

/// `all`, `projections`, `lock-image`, `lock-text` or `last-N`.
impl FromStr for Selection {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all" => Ok(Self::all()),
            "projections" => Ok(Self::projections()),
            "lock-image" => Ok(Self::lock_image()),
            "lock-text" => Ok(Self::lock_text()),
            _ => match text.strip_prefix("last-").and_then(|count| count.parse().ok()) {
                Some(count) => Ok(Self::last_blocks(count)),
                None => Err(Error::unsupported(
                    "selection",
                    "what is trained",
                    text,
                    "all, projections, lock-image, lock-text, last-N",
                )),
            },
        }
    }
}

/// How deep in its tower a parameter sits.
struct Depth {
    tower: &'static str,
    /// 0 before the first block, i for the i-th block counted from 1, one more behind the last.
    level: usize,
    /// How many blocks there are.
    levels: usize,
}

impl Depth {
    fn of(name: &str, parameters: &Parameters) -> Option<Self> {
        let tower = [ClipConfig::TEXT, ClipConfig::IMAGE].into_iter().find(|tower| in_tower(name, tower))?;
        let blocks =
            parameters.iter().filter(|(other, _)| in_tower(other, tower)).filter_map(|(other, _)| block(other));
        let levels = blocks.max().map_or(0, |last| last + 1);
        let level = match block(name) {
            Some(block) => block + 1,
            None if is_before(name) => 0,
            None => levels + 1,
        };
        Some(Self { tower, level, levels })
    }
}

fn in_tower(name: &str, tower: &str) -> bool {
    name.strip_prefix(tower).is_some_and(|rest| rest.starts_with('.'))
}

/// The number behind the first `layers`, `layer`, `blocks` or `stages` of a name. Stages of convolutional towers count as blocks.
fn block(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| matches!(*part, "layers" | "layer" | "blocks" | "block" | "stages" | "resblocks"))?;
    parts.next()?.parse().ok()
}

/// Whether a parameter outside of the blocks stands before them.
fn is_before(name: &str) -> bool {
    ["embed", "pre_layrnorm", "pre_layernorm", "patch", "stem", "relative_position", "position"]
        .iter()
        .any(|part| name.contains(part))
}

/// A rate and a decay for the parameters of a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRule {
    /// Which parameters.
    pub pattern: Pattern,
    /// Their peak learning rate, instead of the tower's or the heads'.
    pub lr: Option<f64>,
    /// Their weight decay, biases and norms included, instead of the recipe's.
    pub weight_decay: Option<f64>,
}

/// The rates of a recipe.
pub(super) struct Rates<'a> {
    /// Of projections, scale and adapters.
    pub(super) lr: f64,
    /// Of towers.
    pub(super) tower_lr: f64,
    /// Of matrices.
    pub(super) weight_decay: f64,
    /// By what each block's rate is multiplied to give that of the block before it.
    pub(super) layer_decay: f64,
    /// Exceptions; the first that matches counts.
    pub(super) rules: &'a [GroupRule],
}

impl Rates<'_> {
    /// Groups of parameters with equal rate and decay, in the order of their first parameter.
    ///
    /// Layer-wise decay γ gives block i of L the rate `tower_lr · γ^(L + 1 − i)`, embeddings i = 0, what stands behind the blocks
    /// i = L + 1 (BEiT, Bao et al. 2022, arXiv 2106.08254, appendix).
    pub(super) fn groups(&self, trainable: &[(String, Var)], parameters: &Parameters) -> Result<Vec<ParamGroup>> {
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            let message = format!("is {}; it must be above 0 and at most 1", self.layer_decay);
            return Err(Error::argument("layer_decay", message));
        }
        let mut groups: Vec<ParamGroup> = Vec::new();
        for (name, var) in trainable {
            let rule = self.rules.iter().find(|rule| rule.pattern.matches(name));
            let adapter = name.contains(".lora_");
            let lr = match Depth::of(name, parameters) {
                Some(depth) if !adapter => {
                    let below = (depth.levels + 1).saturating_sub(depth.level);
                    self.tower_lr * self.layer_decay.powi(below as i32)
                }
                _ => self.lr,
            };
            let weight_decay = if decays(var.dims()) { self.weight_decay } else { 0.0 };
            let lr = rule.and_then(|rule| rule.lr).unwrap_or(lr);
            let weight_decay = rule.and_then(|rule| rule.weight_decay).unwrap_or(weight_decay);
            let pair = (name.clone(), var.clone());
            match groups.iter_mut().find(|group| group.lr == lr && group.weight_decay == weight_decay) {
                Some(group) => group.vars.push(pair),
                None => groups.push(ParamGroup { vars: vec![pair], lr, weight_decay }),
            }
        }
        Ok(groups)
    }
}
