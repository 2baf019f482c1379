//! [`Built`]: something made from parameters, held twice over the same storage: with its graph and without.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Result;
use crate::weights::{Parameters, Params};

/// A tower (or the heads) and its parameters. `tracked` records a graph wherever a parameter is trainable; `detached` never
/// does. Both read the same memory, so a step of an optimiser is seen by both.
pub(crate) struct Built<T: ?Sized> {
    parameters: Parameters,
    linears: Arc<BTreeSet<String>>,
    tracked: Arc<T>,
    detached: Arc<T>,
}

impl<T: ?Sized> Clone for Built<T> {
    fn clone(&self) -> Self {
        let Self { parameters, linears, tracked, detached } = self;
        let (tracked, detached) = (tracked.clone(), detached.clone());
        Self { parameters: parameters.clone(), linears: linears.clone(), tracked, detached }
    }
}

impl<T: ?Sized> Built<T> {
    /// Builds twice what `build` describes.
    pub(crate) fn new(parameters: Parameters, build: impl Fn(&Params) -> Result<Box<T>>) -> Result<Self> {
        let params = Params::new(parameters.clone());
        let tracked = build(&params)?.into();
        let detached = build(&Params::new(parameters.detached()))?.into();
        Ok(Self { parameters, linears: params.linears().into(), tracked, detached })
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The names of its linear layers, those that may have adapters.
    pub(crate) fn linears(&self) -> &BTreeSet<String> {
        &self.linears
    }

    pub(crate) fn tracked(&self) -> &T {
        &self.tracked
    }

    pub(crate) fn detached(&self) -> &T {
        &self.detached
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.parameters.trainable().next().is_none()
    }
}
