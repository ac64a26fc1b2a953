//! A setting that cannot be used.

use std::fmt;

/// What is wrong with a setting, and what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SettingFault {
    /// The variable, or variables, to change.
    pub setting: String,
    /// The fault and its remedy.
    pub reason: String,
}

impl SettingFault {
    /// A fault of `setting`.
    pub fn new(setting: &str, reason: impl Into<String>) -> Self {
        Self { setting: setting.to_owned(), reason: reason.into() }
    }
}

impl std::error::Error for SettingFault {}

impl fmt::Display for SettingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.reason)
    }
}
