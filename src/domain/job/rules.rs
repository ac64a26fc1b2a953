//! What a valid job is, where installations differ.

use std::time::Duration;

use url::Url;

use crate::domain::invisible::is_invisible;

/// What differs between installations in what a valid job is.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The document types that a job may name.
    pub document_types: DocumentTypes,
    /// Whether a link may be plain `http`.
    pub allow_http_links: bool,
    /// Whether the last segment of a link's path may do without `.jpg` and the like.
    pub allow_extensionless_links: bool,
    /// So long before a signed link ends, its job expires: the provider fetches the document some time
    /// after it has accepted the update.
    pub link_expiry_margin: Duration,
}

/// Which document types a job may name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DocumentTypes {
    /// These.
    Listed(Vec<String>),
    /// Any that is written as the provider writes them. Which of them the customer may use, the provider
    /// is asked before each attempt.
    OfProvider,
}

/// No name of a type is longer.
pub const DOCUMENT_TYPE_BYTES_MAX: usize = 64;

/// A type has fewer digits than any document's number, which must not stand in clear.
const DOCUMENT_TYPE_DIGITS_MAX: usize = 3;

/// What [`is_document_type`] takes, but for its length, as a pattern.
pub const DOCUMENT_TYPE_PATTERN: &str = "^[A-Z][A-Z_]*([0-9][A-Z_]*){0,3}$";

/// Whether a text is written as the provider writes document types.
pub fn is_document_type(text: &str) -> bool {
    let is_of_one = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
    (1..=DOCUMENT_TYPE_BYTES_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.bytes().all(is_of_one)
        && text.bytes().filter(u8::is_ascii_digit).count() <= DOCUMENT_TYPE_DIGITS_MAX
}

impl Default for Rules {
    /// The provider's documented types, `https` links with an extension.
    fn default() -> Self {
        let documented = ["AADHAAR", "PASSPORT", "VOTER_ID", "DRIVING_LICENSE"];
        Self {
            document_types: DocumentTypes::Listed(documented.map(str::to_owned).to_vec()),
            allow_http_links: false,
            allow_extensionless_links: false,
            link_expiry_margin: Duration::from_secs(15 * 60),
        }
    }
}

impl Rules {
    pub(super) fn document_type(&self, text: &str) -> Result<(), String> {
        match &self.document_types {
            DocumentTypes::Listed(known) if known.iter().any(|known| known == text) => Ok(()),
            DocumentTypes::Listed(known) => Err(format!("must be one of {}", known.join(", "))),
            DocumentTypes::OfProvider if is_document_type(text) => Ok(()),
            DocumentTypes::OfProvider => Err(format!(
                "must be capitals and underscores, with up to three digits after the first: \
                 {DOCUMENT_TYPE_BYTES_MAX} characters at most"
            )),
        }
    }

    pub(super) fn link(&self, text: &str) -> Result<(), &'static str> {
        let is_unfit = |c: char| c.is_whitespace() || c == '\\' || is_invisible(c);
        if text.chars().count() > 2_048 {
            return Err("must be at most 2,048 characters");
        }
        if text.contains(is_unfit) {
            return Err("must not hold whitespace, backslashes or invisible characters");
        }

        let url = Url::parse(text).map_err(|_| "must be an absolute URL")?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http_links => {}
            _ => return Err("must begin with https://"),
        }
        // Judged as written: the parser takes `https:host` and `https:///host` for
        // `https://host`, which whoever fetches the document may not.
        let rest = text[url.scheme().len()..].strip_prefix("://").unwrap_or_default();
        match rest.split(['/', '?', '#']).next() {
            None | Some("") => return Err("must name a host after ://"),
            Some(host) if host.contains('@') => return Err("must not hold a user or password"),
            Some(_) => {}
        }

        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let file = path.split_once('/').map_or("", |(_, path)| path.rsplit('/').next().unwrap_or_default());
        let extension = file.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase());
        match extension.as_deref() {
            Some("jpg" | "jpeg" | "png" | "pdf") => Ok(()),
            None if self.allow_extensionless_links && !file.is_empty() => Ok(()),
            _ => Err("must have a path that ends in .jpg, .jpeg, .png or .pdf"),
        }
    }
}
