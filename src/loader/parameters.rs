//! A model's parameters from its files, read all at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::{Files, Loader};
use crate::ops::{Packing, Weight};
use crate::weights::{CheckpointSource, Init, ParamSource, Parameters, Params, RandomSource, Renames, Stored};
use crate::{Error, Result};

impl Loader {
    /// Reads (or draws) what `collect` asks for. Each part of the names has its own spelling.
    pub(super) fn parameters(
        &self,
        files: &Files,
        parts: &[(&'static str, &Renames)],
        collect: impl Fn(&Params) -> Result<()> + Sync,
    ) -> Result<(Parameters, Option<Branches>)> {
        let name = files.folder.path().display().to_string();
        // A size that no tower can have was read from the folder's configuration.
        let collect = |params: &Params| collect(params).map_err(|error| Error::file(&files.config_file, error));
        let Some(checkpoint) = &files.checkpoint else {
            let source = RandomSource::new(self.random.unwrap_or(0), self.dtype, &self.device);
            let source = if self.trainable { source } else { source.frozen() };
            let params = Params::new(source).packing(self.packing(false)?);
            collect(&params)?;
            return Ok((params.finish(&name)?, None));
        };
        let packing = self.packing(checkpoint.holds_quantized())?;
        let trainable = self.trainable && packing == Packing::None;
        let source = |renames: &Renames| {
            let source = CheckpointSource::new(checkpoint.clone(), renames).dtype(self.dtype).device(&self.device);
            Arc::new(source.trainable(move |_| trainable).header_only())
        };
        let branches: Vec<_> = parts.iter().map(|(prefix, renames)| (*prefix, source(renames))).collect();
        let branches = Branches(branches);
        // Names and shapes first: what is wrong with them is said before anything is read, and then all is read at once.
        let params = Params::new(branches.clone());
        collect(&params)?;
        for unused in branches.0.iter().flat_map(|(_, source)| source.unused()) {
            params.note_problem(format!("{unused}: in the file, but the configuration has no place for it"));
        }
        let matrices = params.matrices();
        let headers = params.finish(&name)?;
        let read = |name: &str, shape: &[usize]| match branches.find(name) {
            Some((source, rest)) => source.read(rest, shape, matrices.contains(name), packing),
            None => Err(Error::file(&files.config_file, format!("'{name}' is in no part of the files"))),
        };
        Ok((headers.read(&name, read)?, Some(branches)))
    }
}

/// Several sources, each responsible for the names under its prefix; the one with no prefix takes the rest.
#[derive(Clone)]
pub(super) struct Branches(pub(super) Vec<(&'static str, Arc<CheckpointSource>)>);

impl Branches {
    fn find<'a>(&self, name: &'a str) -> Option<(&CheckpointSource, &'a str)> {
        self.0.iter().find_map(|(prefix, source)| match *prefix {
            "" => Some((&**source, name)),
            prefix => Some((&**source, name.strip_prefix(prefix)?.strip_prefix('.')?)),
        })
    }

    /// For each parameter how the files hold it.
    pub(super) fn stored(&self, parameters: &Parameters) -> BTreeMap<String, Stored> {
        let stored = |(name, _): (&str, &Weight)| {
            let (source, rest) = self.find(name)?;
            Some((name.to_string(), source.stored(rest)?))
        };
        parameters.weights().filter_map(stored).collect()
    }
}

impl ParamSource for Branches {
    fn get(&self, name: &str, shape: &[usize], init: Init) -> std::result::Result<Tensor, String> {
        match self.find(name) {
            Some((source, rest)) => source.get(rest, shape, init),
            None => Err(format!("{name}: missing")),
        }
    }
}
