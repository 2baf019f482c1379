//! [`Renames`]: from the names in a checkpoint's files to the names in memory.
//!
//! A name is a list of segments between dots. A rule replaces a run of whole segments: `("encoder.layer", "encoder.layers")`
//! turns `encoder.layer.0.x` into `encoder.layers.0.x` and leaves `encoder.layers.0.x` alone. Rules are applied in their
//! order, each of them once, at the first place that fits.
//!
//! A tensor of a file may be several of ours, one above the other (a fused projection of queries, keys and values):
//! [`Renames::split`]; or the transpose of one of ours (`x·W` in place of `x·Wᵀ`): [`Renames::transposed`].

use super::pattern::Pattern;
use crate::{Error, Result};

/// How the names in a checkpoint's files become the names in memory, and which tensors may go unused.
#[derive(Debug, Clone, Default)]
pub struct Renames {
    within: Vec<String>,
    rules: Vec<Rule>,
    splits: Vec<Split>,
    transposed: Vec<Pattern>,
    ignored: Vec<Pattern>,
}

/// One tensor of the file that is several of ours, stacked along the first axis.
#[derive(Debug, Clone)]
struct Split {
    from: Vec<String>,
    into: Vec<Vec<String>>,
}

/// Which part of a file's tensor is ours, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// All of it, as it is.
    Whole,
    /// All of it, rows and columns exchanged.
    Transposed,
    /// The `index`-th of `count` equal parts along the first axis.
    Part {
        /// Which.
        index: usize,
        /// Of how many.
        count: usize,
    },
}

#[derive(Debug, Clone)]
struct Rule {
    place: Place,
    from: Vec<String>,
    to: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Anywhere,
}

impl Renames {
    /// Rules as (spelling in the file, our spelling) and globs over names in the file that may go unused.
    ///
    /// A rule that begins with `^` fits only at the start of a name: `("^bert", "")` drops a prefix, `("^", "text_model")`
    /// puts one in front of every name.
    ///
    /// # Errors
    /// If a rule replaces nothing, or a glob is empty.
    pub fn new<S: AsRef<str>>(rules: &[(S, S)], ignored: &[S]) -> Result<Self> {
        let rules = rules.iter().map(|(from, to)| Rule::new(from.as_ref(), to.as_ref())).collect::<Result<_>>()?;
        let ignored = ignored.iter().map(|glob| Pattern::new(glob.as_ref())).collect::<Result<_>>()?;
        Ok(Self { within: Vec::new(), rules, ignored, ..Self::default() })
    }

    /// The same names under `prefix.`: it is taken off before the rules apply, and tensors elsewhere are not seen at all.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        let mut within = segments(prefix);
        within.append(&mut self.within);
        self.within = within;
        self
    }

    /// One more rule, applied after those there are.
    ///
    /// # Errors
    /// If the rule replaces nothing.
    pub fn rule(mut self, from: &str, to: &str) -> Result<Self> {
        self.rules.push(Rule::new(from, to)?);
        Ok(self)
    }

    /// A tensor of the file that is several of ours: where a name, after all rules, holds the segments `from`, it stands for
    /// the names with each of `into` in that place, which share its first axis evenly and in this order.
    ///
    /// # Errors
    /// If `from` or `into` is empty.
    pub fn split(mut self, from: &str, into: &[&str]) -> Result<Self> {
        let split = Split { from: segments(from), into: into.iter().map(|to| segments(to)).collect() };
        if split.from.is_empty() || split.into.is_empty() {
            return Err(Error::argument("split", format!("('{from}', {into:?}) splits nothing")));
        }
        self.splits.push(split);
        Ok(self)
    }

    /// Our names (a glob) whose tensors are matrices that the file holds transposed.
    ///
    /// # Errors
    /// If the glob is empty.
    pub fn transposed(mut self, ours: &str) -> Result<Self> {
        self.transposed.push(Pattern::new(ours)?);
        Ok(self)
    }

    /// One more glob over names in the file that may go unused.
    ///
    /// # Errors
    /// If the glob is empty.
    pub fn ignore(mut self, glob: &str) -> Result<Self> {
        self.ignored.push(Pattern::new(glob)?);
        Ok(self)
    }

    /// All that the file's tensor `name` is to us: our names, each with its view of the tensor.
    pub(crate) fn views(&self, name: &str) -> Vec<(String, View)> {
        let Some(ours) = self.map(name) else { return Vec::new() };
        let found: Vec<String> = ours.split('.').map(str::to_string).collect();
        for Split { from, into } in &self.splits {
            let Some(at) = found.windows(from.len()).position(|window| window == from) else { continue };
            let put = |to: &[String]| [&found[..at], to, &found[at + from.len()..]].concat().join(".");
            let parts = into.iter().enumerate();
            return parts.map(|(index, to)| (put(to), View::Part { index, count: into.len() })).collect();
        }
        let transposed = self.transposed.iter().any(|glob| glob.matches(&ours));
        vec![(ours, if transposed { View::Transposed } else { View::Whole })]
    }

    /// The way back: which tensor of a file the parameter that we call `ours` is, and how. `None` where the rules do not say,
    /// as where several spellings of the file mean the same.
    pub(crate) fn file_name(&self, ours: &str) -> Option<(String, View)> {
        let mut name: Vec<String> = ours.split('.').map(str::to_string).collect();
        let transposed = self.transposed.iter().any(|glob| glob.matches(ours));
        let mut view = if transposed { View::Transposed } else { View::Whole };
        let parts = self.splits.iter().flat_map(|split| split.into.iter().enumerate().map(move |part| (split, part)));
        for (Split { from, into }, (index, to)) in parts {
            if let Some(at) = name.windows(to.len()).position(|window| window == to) {
                name.splice(at..at + to.len(), from.iter().cloned());
                view = View::Part { index, count: into.len() };
                break;
            }
        }
        for Rule { place, from, to } in self.rules.iter().rev() {
            Rule { place: *place, from: to.clone(), to: from.clone() }.apply(&mut name);
        }
        let name = self.within.iter().chain(&name).cloned().collect::<Vec<_>>().join(".");
        self.views(&name).contains(&(ours.to_string(), view)).then_some((name, view))
    }

    /// Our name of the tensor that the file calls `name`, or `None` if it lies outside of the prefix. What it is split into is
    /// not seen here.
    #[must_use]
    pub fn map(&self, name: &str) -> Option<String> {
        let mut name: Vec<String> = self.inner(name)?.split('.').map(str::to_string).collect();
        for rule in &self.rules {
            rule.apply(&mut name);
        }
        Some(name.join("."))
    }

    /// Whether the tensor that the file calls `name` may go unused. The globs see the name without the prefix.
    #[must_use]
    pub fn is_ignored(&self, name: &str) -> bool {
        self.inner(name).is_none_or(|name| self.ignored.iter().any(|glob| glob.matches(name)))
    }

    fn inner<'a>(&self, name: &'a str) -> Option<&'a str> {
        self.within.iter().try_fold(name, |rest, segment| rest.strip_prefix(segment.as_str())?.strip_prefix('.'))
    }
}

impl Rule {
    fn new(from: &str, to: &str) -> Result<Self> {
        let (place, spelling) = match from.strip_prefix('^') {
            Some(rest) => (Place::Start, rest),
            None => (Place::Anywhere, from),
        };
        let rule = Self { place, from: segments(spelling), to: segments(to) };
        if rule.from.is_empty() && (rule.place == Place::Anywhere || rule.to.is_empty()) {
            return Err(Error::argument("rules", format!("the rule ('{from}', '{to}') replaces nothing")));
        }
        Ok(rule)
    }

    fn apply(&self, name: &mut Vec<String>) {
        let at = match self.place {
            Place::Start => name.starts_with(&self.from).then_some(0),
            Place::Anywhere => name.windows(self.from.len()).position(|window| window == self.from),
        };
        if let Some(at) = at {
            name.splice(at..at + self.from.len(), self.to.iter().cloned());
        }
    }
}

/// The segments of a spelling; a dot too many at either end does no harm.
fn segments(spelling: &str) -> Vec<String> {
    spelling.split('.').filter(|segment| !segment.is_empty()).map(str::to_string).collect()
}

/// The name among `names` with the fewest edits from `wanted`, if it is near enough to help.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = wanted.chars().collect();
    let mut best = None;
    let mut limit = wanted.len() / 2;
    for name in names {
        if let Some(distance) = edit_distance(&wanted, name, limit) {
            best = Some(name);
            if distance == 0 {
                break;
            }
            limit = distance - 1;
        }
    }
    best
}

/// Levenshtein's distance, or `None` once it is known to be above `limit`.
fn edit_distance(a: &[char], b: &str, limit: usize) -> Option<usize> {
    let b: Vec<char> = b.chars().collect();
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
        if row.iter().min() > Some(&limit) {
            return None;
        }
    }
    row.last().copied().filter(|distance| *distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bert() -> Renames {
        let rules = [
            ("^bert.", ""),
            ("encoder.layer", "encoder.layers"),
            ("attention.self.query", "self_attn.q_proj"),
            ("attention.output.dense", "self_attn.out_proj"),
            ("output.dense", "mlp.fc2"),
        ];
        Renames::new(&rules, &["cls.*", "*.position_ids"]).unwrap()
    }

    #[test]
    fn rules_replace_whole_segments_once_each_and_in_order() {
        let cases = [
            ("bert.encoder.layer.3.attention.self.query.weight", "encoder.layers.3.self_attn.q_proj.weight"),
            ("encoder.layer.3.attention.output.dense.bias", "encoder.layers.3.self_attn.out_proj.bias"),
            ("encoder.layer.3.output.dense.bias", "encoder.layers.3.mlp.fc2.bias"),
            ("encoder.layer_norm.weight", "encoder.layer_norm.weight"),
            ("roberta.bert.x", "roberta.bert.x"),
            ("bert.bert.x", "bert.x"),
        ];
        for (file, ours) in cases {
            assert_eq!(bert().map(file).as_deref(), Some(ours));
        }
    }

    #[test]
    fn an_anchored_empty_rule_puts_a_prefix_in_front() {
        let names = bert().rule("^", "text_model").unwrap();
        assert_eq!(names.map("bert.pooler.dense.weight").as_deref(), Some("text_model.pooler.dense.weight"));
    }

    #[test]
    fn a_prefix_hides_everything_else_and_is_unknown_to_the_rules() {
        let names = bert().within("text_model");
        assert_eq!(names.map("text_model.bert.x").as_deref(), Some("x"));
        assert_eq!(names.map("vision_model.x"), None);
        assert_eq!(names.map("text_model_2.x"), None);
        assert!(names.is_ignored("text_model.cls.decoder.weight"));
        assert!(!names.is_ignored("text_model.x"));
        assert!(names.is_ignored("vision_model.x"));
    }

    #[test]
    fn one_tensor_of_the_file_may_be_several_of_ours_or_a_transpose() {
        let names = Renames::new(&[("attn", "self_attn")], &[]).unwrap();
        let names = names.split("self_attn.qkv", &["self_attn.q_proj", "self_attn.k_proj"]).unwrap();
        let names = names.transposed("*proj").unwrap();
        let part = |index| View::Part { index, count: 2 };
        assert_eq!(
            names.views("0.attn.qkv.bias"),
            [("0.self_attn.q_proj.bias".to_string(), part(0)), ("0.self_attn.k_proj.bias".to_string(), part(1))]
        );
        assert_eq!(names.views("proj"), [("proj".to_string(), View::Transposed)]);
        assert_eq!(names.views("0.attn.x"), [("0.self_attn.x".to_string(), View::Whole)]);
        assert!(names.split("", &[]).is_err());
    }

    #[test]
    fn the_way_back_undoes_rules_splits_and_transposes_or_says_that_it_cannot() {
        let names = Renames::new(&[("^blocks", "layers"), ("attn", "self_attn")], &[]).unwrap();
        let names =
            names.split("qkv.bias", &["q.bias", "k.bias"]).unwrap().transposed("proj").unwrap().within("visual");
        let part = View::Part { index: 1, count: 2 };
        assert_eq!(
            names.file_name("layers.0.self_attn.k.bias"),
            Some(("visual.blocks.0.attn.qkv.bias".to_string(), part))
        );
        assert_eq!(names.file_name("proj"), Some(("visual.proj".to_string(), View::Transposed)));
        assert_eq!(names.file_name("x"), Some(("visual.x".to_string(), View::Whole)));
        assert_eq!(names.file_name("attn.x"), None);
    }

    #[test]
    fn rules_that_replace_nothing_are_refused() {
        for rule in [("", "x"), ("^", ""), (".", "x")] {
            assert!(Renames::new(&[rule], &[]).unwrap_err().to_string().contains("replaces nothing"), "{rule:?}");
        }
    }

    #[test]
    fn the_nearest_name_is_found_and_far_ones_are_not_offered() {
        let names = ["encoder.layers.0.norm.weight", "encoder.layers.0.norm.bias", "pooler"];
        assert_eq!(nearest("encoder.layers.0.nrm.bias", names.into_iter()), Some(names[1]));
        assert_eq!(nearest("zzz", names.into_iter()), None);
        assert_eq!(edit_distance(&['k', 'i', 't', 't', 'e', 'n'], "sitting", 9), Some(3));
        assert_eq!(edit_distance(&['k', 'i', 't', 't', 'e', 'n'], "sitting", 2), None);
    }
}
