//! What a run leaves for a person: a log while it goes on, and at its end a page with curves and pictures, and a model card.
//!
//! ```text
//! Progress ──RunLog──▶ JSON lines, TensorBoard event file        (while it goes on)
//!             └─History─▶ ReportPage (one HTML file), ModelCard (README.md)   (at its end)
//! Embeddings, Split ──Gallery──▶ the best and the worst retrievals, in the page
//! ```
//!
//! [`RunLog`] is fed every [`Progress`](crate::train::Progress) event. What it writes has whole lines and records only, so a log can be
//! read while the run goes on and after it was killed. The page needs no network and runs no script. Neither page nor card says where on
//! the machine the data lay: [`shown_command`] and the gallery keep the last part of absolute paths only.

mod card;
mod chart;
mod escape;
mod event_file;
mod gallery;
mod history;
mod json_lines;
mod page;
mod run_log;

pub use card::{CardFile, ModelCard, shown_command};
pub use event_file::EventFile;
pub use gallery::{Gallery, Picture, Retrieved};
pub use history::{History, Measured, Series};
pub use json_lines::JsonLines;
pub use page::{AlphaCurve, ReportPage};
pub use run_log::RunLog;
