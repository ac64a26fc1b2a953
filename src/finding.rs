//! What a look at one thing found: its fault and the remedy, as `check` prints them.

use serde::Serialize;

/// How a thing was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    Ok,
    /// Worth knowing; nothing fails for it.
    Note,
    /// The worker fails, or will.
    Wrong,
}

/// One thing, as it was found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub grade: Grade,
    /// What was found. It begins with the setting to blame, where there is one.
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(what: impl Into<String>) -> Self {
        Self { grade: Grade::Ok, what: what.into(), remedy: None }
    }

    pub fn note(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Note, what: what.into(), remedy: Some(remedy.into()) }
    }

    pub fn wrong(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Wrong, what: what.into(), remedy: Some(remedy.into()) }
    }
}
