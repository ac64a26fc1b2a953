//! Who does something by hand, and why: the arguments that every such command takes.

use clap::Args;

use crate::desk::interventions::Attribution;

/// Who does something by hand, and why. Kept for ever.
#[derive(Args, Debug)]
pub(super) struct AttributionArgs {
    /// Who does this; kept for ever
    #[arg(long, value_name = "NAME", value_parser = parse_text)]
    by: String,
    /// Why; kept for ever, so no personal data
    #[arg(long, value_name = "TEXT", value_parser = parse_text)]
    note: String,
}

impl AttributionArgs {
    pub fn attribution(&self) -> Attribution<'_> {
        Attribution { by: &self.by, note: &self.note, proposal: None }
    }
}

/// The same, where it need not be said.
#[derive(Args, Debug)]
pub(super) struct MaybeAttributionArgs {
    /// Who does this; kept for ever
    #[arg(long, value_name = "NAME", value_parser = parse_text)]
    pub by: Option<String>,
    /// Why; kept for ever, so no personal data
    #[arg(long, value_name = "TEXT", value_parser = parse_text)]
    pub note: Option<String>,
}

impl MaybeAttributionArgs {
    pub fn attribution(&self) -> Option<Attribution<'_>> {
        Some(Attribution { by: self.by.as_deref()?, note: self.note.as_deref()?, proposal: None })
    }
}

/// A text that says something, on one line.
fn parse_text(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.is_empty() || text.len() > 500 || text.chars().any(char::is_control) {
        true => Err("must have 1 to 500 bytes and no control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}
