//! What the programs' options are called in the library, where that is something else.

use diptych::ErrorKind;

/// An argument as the library's errors name it, and the options that set it.
const OPTIONS: [(&str, &str); 11] = [
    ("DistillLoss", "--distill-only, --distill-weight, --distill-features"),
    ("DistillLoss::features", "--distill-features"),
    ("DistillLoss::logits", "--distill-weight"),
    ("alpha", "--canary-loss"),
    ("broken_images", "--max-broken"),
    ("checkpoints", "--checkpoint-every"),
    ("early_stop", "--patience, --canary-loss"),
    ("layout", "--to"),
    ("rank", "--lora"),
    ("tolerance", "--max-broken"),
    ("workers", "--threads"),
];

/// The error as a person is told of it: with the options that it is about.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<diptych::Error>().map(diptych::Error::kind) {
        Some(ErrorKind::Argument { argument, message }) => match OPTIONS.iter().find(|(name, _)| name == argument) {
            Some((_, options)) => format!("{argument} ({options}): {message}"),
            None => error.to_string(),
        },
        Some(ErrorKind::File { message, .. }) if message.ends_with("the folder that holds the images") => {
            format!("{error} (--images)")
        }
        _ => error.to_string(),
    }
}
