//! Secrets, given as they are or as files, and the certificates beside them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::fault::SettingFault;

/// A secret as it was given. It never shows.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A secret from its variable or from the file that the variable `…_FILE` names.
pub(super) fn read_secret(
    setting: &str,
    given: Option<&Secret>,
    file: Option<&PathBuf>,
) -> Result<Secret, SettingFault> {
    let fault = |reason: String| SettingFault::new(setting, reason);
    let secret = match (given, file) {
        (Some(_), Some(_)) => {
            return Err(fault(format!("is given twice; keep {setting} or {setting}_FILE")));
        }
        (Some(secret), None) => secret.clone(),
        (None, Some(path)) => {
            let text = read_file(path).map_err(|error| {
                fault(format!("cannot read {} ({setting}_FILE): {error}", path.display()))
            })?;
            Secret(text)
        }
        (None, None) => return Err(fault(format!("is not set; set {setting} or {setting}_FILE"))),
    };
    // What editors and shells leave around it.
    let bare = secret.expose().trim_start_matches(BYTE_ORDER_MARK).trim();
    if bare.is_empty() {
        return Err(fault("is empty".to_owned()));
    }
    if bare.contains(char::is_control) {
        return Err(fault("must be one line without control characters".to_owned()));
    }
    Ok(Secret::from(bare))
}

/// Some editors begin a file of UTF-8 with it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// No file of settings is larger; a bundle of every public authority has 250 KiB.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads a file of settings. What is none, as a pipe or a device, may never end, and could not be read
/// again after a rotation.
pub(super) fn read_file(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// A file that holds at least one PEM block of a kind.
pub(super) fn read_pem(setting: &str, path: &Path, kind: &str) -> Result<Vec<u8>, SettingFault> {
    let fault = |reason: String| SettingFault::new(setting, reason);
    let text = read_file(path).map_err(|error| fault(format!("cannot read {}: {error}", path.display())))?;
    let text = text.trim_start_matches(BYTE_ORDER_MARK);
    let is_kind = |line: &str| line.starts_with("-----BEGIN ") && line.contains(kind);
    match text.lines().any(is_kind) {
        true => Ok(text.as_bytes().to_vec()),
        false => Err(fault(format!("{} holds no PEM {kind}", path.display()))),
    }
}
