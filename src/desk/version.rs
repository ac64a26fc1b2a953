//! What a thing was when somebody saw it. Who acts on it later says so, and it must still be the same.

use std::fmt;

use serde::Serialize;

/// What a thing was, in words that people can compare.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Version(String);

impl Version {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses where `expected` is another than this.
    pub(crate) fn expect(&self, expected: Option<&Self>) -> Result<(), Changed> {
        match expected {
            Some(was) if was != self => Err(Changed { was: was.clone(), is: self.clone() }),
            _ => Ok(()),
        }
    }
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// It is not what it was.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("changed meanwhile: was {was}, is {is}")]
pub struct Changed {
    pub was: Version,
    pub is: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_than_the_expected_one_is_refused_and_both_are_told() {
        let version = |text: &str| Version::from(text.to_owned());
        let is = version("exhausted, claim 2, 3 entries");
        for (expected, told) in [
            (None, None),
            (Some(is.clone()), None),
            (
                Some(version("needs_review, claim 1, 3 entries")),
                Some(
                    "changed meanwhile: was needs_review, claim 1, 3 entries, is exhausted, claim 2, 3 entries",
                ),
            ),
        ] {
            let refusal = is.expect(expected.as_ref()).err().map(|changed| changed.to_string());
            assert_eq!(refusal.as_deref(), told);
        }
    }
}
