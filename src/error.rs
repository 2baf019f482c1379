//! One error type for the whole crate: [`Error`] says what went wrong in a sentence, [`ErrorKind`] lets a program decide.

use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one sentence that names the thing and says what to do.
///
/// The error is one pointer wide; [`Error::kind`] gives the reason to match on.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<ErrorKind>);

/// The reasons for an [`Error`], grouped by who must act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument of a call cannot be used.
    #[error("{argument}: {message}")]
    Argument {
        /// The argument's name, as the documentation spells it.
        argument: &'static str,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// A file or folder cannot be read, written or understood.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A checkpoint's tensors do not fit its configuration. All problems are there; the text shows the first forty.
    #[error("{source_name}: the tensors do not fit the configuration:\n  {}", listed(problems))]
    Tensors {
        /// The checkpoint's folder or file.
        source_name: String,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// A configuration asks for something that this crate does not have.
    #[error("{context}: {what} '{found}' is not supported; supported: {supported}")]
    Unsupported {
        /// The file (or call) that asks for it.
        context: String,
        /// What kind of thing it is: "architecture", "activation", …
        what: &'static str,
        /// The value found.
        found: String,
        /// The values that would work.
        supported: String,
    },
    /// An image cannot be decoded or is too large.
    #[error("image {name}: {message}")]
    Image {
        /// The image's path, and its place in the input where it is one of many.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// A data set's file is not what was expected.
    #[error("{}{}: {message}", path.display(), line.map(|l| format!(", line {l}")).unwrap_or_default())]
    Data {
        /// The file of the data set.
        path: PathBuf,
        /// The line, counted from 1, if one line is at fault.
        line: Option<u64>,
        /// What is wrong.
        message: String,
    },
    /// A checkpoint could not be fetched from the hub.
    #[error("{id}: {message}")]
    Hub {
        /// The repository id on the hub.
        id: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Training cannot go on: a loss or gradient that is not finite, or parameters without a gradient.
    #[error("training stopped at step {step}: {message}")]
    Training {
        /// The optimiser step, counted from 1.
        step: usize,
        /// What is wrong.
        message: String,
    },
    /// A tensor operation failed inside candle.
    #[error("tensor operation failed: {0}")]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// The reason, to match on.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }

    pub(crate) fn argument(argument: &'static str, message: impl Into<String>) -> Self {
        ErrorKind::Argument { argument, message: message.into() }.into()
    }

    pub(crate) fn file(path: impl AsRef<Path>, message: impl std::fmt::Display) -> Self {
        ErrorKind::File { path: path.as_ref().to_path_buf(), message: message.to_string() }.into()
    }

    pub(crate) fn image(name: impl Into<String>, message: impl std::fmt::Display) -> Self {
        ErrorKind::Image { name: name.into(), message: message.to_string() }.into()
    }

    pub(crate) fn unsupported(
        context: impl Into<String>,
        what: &'static str,
        found: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        ErrorKind::Unsupported { context: context.into(), what, found: found.into(), supported: supported.into() }
            .into()
    }
}

/// The first problems, one a line, and how many more there are.
fn listed(problems: &[String]) -> String {
    const SHOWN: usize = 40;
    let mut text = problems.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n  ");
    if problems.len() > SHOWN {
        text.push_str(&format!("\n  … and {} more", problems.len() - SHOWN));
    }
    text
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(kind))
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        ErrorKind::Candle(error).into()
    }
}
