//! What a valid job is, where installations differ.

use std::time::Duration;

use url::Url;

use crate::domain::invisible::is_invisible;

/// What differs between installations in what a valid job is.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The document types that the provider supports here.
    pub document_types: Vec<String>,
    /// Whether a link may be plain `http`.
    pub allow_http_links: bool,
    /// Whether the last segment of a link's path may do without `.jpg` and the like.
    pub allow_extensionless_links: bool,
    /// So long before a signed link ends, its job expires: the provider fetches the document some time
    /// after it has accepted the update.
    pub link_expiry_margin: Duration,
}

impl Default for Rules {
    /// The provider's documented types, `https` links with an extension.
    fn default() -> Self {
        let documented = ["AADHAAR", "PASSPORT", "VOTER_ID", "DRIVING_LICENSE"];
        Self {
            document_types: documented.map(str::to_owned).to_vec(),
            allow_http_links: false,
            allow_extensionless_links: false,
            link_expiry_margin: Duration::from_secs(15 * 60),
        }
    }
}

impl Rules {
    pub(super) fn document_type(&self, text: &str) -> Result<(), String> {
        if self.document_types.iter().any(|known| known == text) {
            Ok(())
        } else {
            Err(format!("must be one of {}", self.document_types.join(", ")))
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
