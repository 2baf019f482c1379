//! Text to token ids: [`TextTokenizer`] turns strings into a [`TokenBatch`], following the [`TokenRules`] of the checkpoint.

mod batch;
mod clean;
mod convert;
mod files;
mod rules;
mod sentencepiece;
mod tokenizer;

pub use batch::TokenBatch;
pub use clean::Cleaning;
pub use rules::{PadId, Padding, Separator, SpecialTokens, Splitting, TokenRules};
pub use tokenizer::TextTokenizer;
