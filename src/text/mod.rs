//! Text to token ids: [`TextTokenizer`] turns strings into a [`TokenBatch`], following the [`TokenRules`] of the checkpoint.

mod batch;
mod tokenizer;

pub use batch::TokenBatch;
pub use tokenizer::{PadId, Padding, SpecialTokens, TextTokenizer, TokenRules};
