//! What the first bytes of a document's link tell of it. Only what shows that the provider could not use
//! the document rejects its job; what may pass is checked again.

use super::state::LinkField;
use super::verdict::{LinkRefusal, Rejection};

/// So many bytes of a document are read at most: a PDF's header may stand anywhere in its first 1,024 (PDF
/// 1.7, Adobe's implementation notes).
pub const BYTES_MAX: usize = 1_024;

/// What came of the try to read a document's first bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fetched {
    /// The link, or what it leads on to, must not be asked for: by [`super::address_rule`], or as it leads on
    /// more than three times.
    Forbidden,
    Answered {
        status: u16,
        /// The first bytes, [`BYTES_MAX`] at most.
        begin: Vec<u8>,
    },
    /// No answer, or not all of it that is read, in time.
    TimedOut,
    /// The name is not resolved, nobody answers there, TLS fails, or the connection breaks off.
    Unreachable,
}

/// Why a link could not be checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unchecked {
    TimedOut,
    Unreachable,
    /// Its host asks to come later: 408, 425 or 429.
    PutOff,
    /// 5xx, or a status that HTTP does not have.
    HostFailed,
}

/// What is wrong with a link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LinkFault {
    /// It holds no document that the provider could use.
    Rejected(Rejection),
    /// Nobody knows yet.
    Unchecked(Unchecked),
}

/// The kinds of documents that the provider takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Jpeg,
    Png,
    Pdf,
}

impl Kind {
    /// By the extension of the link's path, as it is written; none where it has none.
    fn of_link(link: &str) -> Option<Self> {
        let path = link.split(['?', '#']).next()?;
        let (_, extension) = path.rsplit('/').next()?.rsplit_once('.')?;
        match extension.to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "png" => Some(Self::Png),
            "pdf" => Some(Self::Pdf),
            _ => None,
        }
    }

    /// By the bytes that such files begin with.
    fn of_bytes(begin: &[u8]) -> Option<Self> {
        if begin.starts_with(b"\xff\xd8\xff") {
            Some(Self::Jpeg)
        } else if begin.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if begin.windows(5).any(|bytes| bytes == b"%PDF-") {
            Some(Self::Pdf)
        } else {
            None
        }
    }
}

/// Judges what was fetched by the link of a field.
///
/// # Errors
/// What is wrong with it.
pub fn judge(field: LinkField, link: &str, fetched: &Fetched) -> Result<(), LinkFault> {
    let rejected = |rejection| Err(LinkFault::Rejected(rejection));
    let unchecked = |why| Err(LinkFault::Unchecked(why));
    match fetched {
        Fetched::Forbidden => rejected(Rejection::LinkRefused(field, LinkRefusal::Forbidden)),
        Fetched::TimedOut => unchecked(Unchecked::TimedOut),
        Fetched::Unreachable => unchecked(Unchecked::Unreachable),
        Fetched::Answered { status: 200 | 206, begin } => {
            match (Kind::of_bytes(begin), Kind::of_link(link)) {
                (Some(kind), named) if named.is_none_or(|named| named == kind) => Ok(()),
                _ => rejected(Rejection::NotADocument(field)),
            }
        }
        Fetched::Answered { status, .. } => match status {
            404 | 410 => rejected(Rejection::LinkNotFound(field)),
            408 | 425 | 429 => unchecked(Unchecked::PutOff),
            // Nothing is there to be read; 416: not even a first byte.
            201..=299 | 416 => rejected(Rejection::NotADocument(field)),
            // A redirect that leads nowhere is no better than a refusal.
            300..=499 => rejected(Rejection::LinkRefused(field, LinkRefusal::ByHost)),
            _ => unchecked(Unchecked::HostFailed),
        },
    }
}

impl Unchecked {
    /// What is written with the attempt. It names the link by its pointer: its query may hold a secret.
    pub const fn told(self, field: LinkField) -> &'static str {
        match (self, field) {
            (Self::TimedOut, LinkField::Front) => "/document_front_image_url: no answer in time",
            (Self::TimedOut, LinkField::Back) => "/document_back_image_url: no answer in time",
            (Self::Unreachable, LinkField::Front) => "/document_front_image_url: its host cannot be reached",
            (Self::Unreachable, LinkField::Back) => "/document_back_image_url: its host cannot be reached",
            (Self::PutOff, LinkField::Front) => "/document_front_image_url: its host asks to come later",
            (Self::PutOff, LinkField::Back) => "/document_back_image_url: its host asks to come later",
            (Self::HostFailed, LinkField::Front) => "/document_front_image_url: its host fails",
            (Self::HostFailed, LinkField::Back) => "/document_back_image_url: its host fails",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JPEG: &[u8] = b"\xff\xd8\xff\xe0\x00\x10JFIF";
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR";
    const PDF: &[u8] = b"%PDF-1.7\n";

    fn check(link: &str, fetched: Fetched, expected: Result<(), LinkFault>) {
        assert_eq!(judge(LinkField::Back, link, &fetched), expected, "{link}: {fetched:?}");
    }

    fn answered(status: u16, begin: &[u8]) -> Fetched {
        Fetched::Answered { status, begin: begin.to_vec() }
    }

    fn rejected(rejection: fn(LinkField) -> Rejection) -> Result<(), LinkFault> {
        Err(LinkFault::Rejected(rejection(LinkField::Back)))
    }

    #[test]
    fn a_document_is_one_by_its_first_bytes_and_its_extension() {
        let wrong = || rejected(Rejection::NotADocument);
        let late = [b"\r\n junk of a scanner ", PDF].concat();
        let beyond = [&[b' '; BYTES_MAX][..], PDF].concat();
        for (link, begin, expected) in [
            ("https://h/a.jpg", JPEG, Ok(())),
            ("https://h/a.JPEG?x=a.png", JPEG, Ok(())),
            ("https://h/a.png#a.pdf", PNG, Ok(())),
            ("https://h/a.pdf", PDF, Ok(())),
            ("https://h/a.pdf", &late, Ok(())),
            ("https://h/a", JPEG, Ok(())),
            ("https://h/a", PDF, Ok(())),
            ("https://h.jpg/a", PNG, Ok(())),
            ("https://h/a.jpg", PNG, wrong()),
            ("https://h/a.png", JPEG, wrong()),
            ("https://h/a.pdf", JPEG, wrong()),
            ("https://h/a.pdf", &beyond[..BYTES_MAX], wrong()),
            ("https://h/a.jpg", b"<!doctype html><title>Sign in</title>", wrong()),
            ("https://h/a", b"GIF89a", wrong()),
            ("https://h/a.jpg", b"\xff\xd8", wrong()),
            ("https://h/a.jpg", b"", wrong()),
        ] {
            check(link, answered(200, begin), expected.clone());
            check(link, answered(206, begin), expected);
        }
    }

    #[test]
    fn every_answer_has_its_verdict() {
        let refused = |why| Err(LinkFault::Rejected(Rejection::LinkRefused(LinkField::Back, why)));
        let unchecked = |why| Err(LinkFault::Unchecked(why));
        let link = "https://h/a.jpg";
        check(link, Fetched::Forbidden, refused(LinkRefusal::Forbidden));
        check(link, Fetched::TimedOut, unchecked(Unchecked::TimedOut));
        check(link, Fetched::Unreachable, unchecked(Unchecked::Unreachable));
        // What an answer that is none of the two says in its body counts for nothing.
        for status in [404, 410] {
            check(link, answered(status, JPEG), rejected(Rejection::LinkNotFound));
        }
        for status in [201, 203, 204, 207, 416] {
            check(link, answered(status, JPEG), rejected(Rejection::NotADocument));
        }
        for status in [300, 302, 304, 308, 400, 401, 402, 403, 405, 406, 407, 409, 412, 451, 499] {
            check(link, answered(status, JPEG), refused(LinkRefusal::ByHost));
        }
        for status in [408, 425, 429] {
            check(link, answered(status, JPEG), unchecked(Unchecked::PutOff));
        }
        for status in [500, 502, 503, 504, 599, 999, 101] {
            check(link, answered(status, JPEG), unchecked(Unchecked::HostFailed));
        }
    }

    #[test]
    fn what_is_told_of_a_link_names_its_field() {
        use Unchecked::*;
        for field in LinkField::ALL {
            for why in [TimedOut, Unreachable, PutOff, HostFailed] {
                assert!(why.told(*field).starts_with(&format!("{field}: ")), "{why:?}");
            }
        }
    }
}
