//! Writing and reading weights.
mod params;
pub use params::{Init, ParamSource, Parameters, Params, RandomSource, VarBuilderSource};
