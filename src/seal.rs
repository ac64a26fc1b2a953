//! What the database may hold of personal data: payloads sealed with a key that it does
//! not have, and fingerprints that tell contents apart without telling what they are.
//! Knows bytes only: nothing of SQL, nothing of where keys come from.

use std::fmt;

use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{Aead, Payload},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

const VERSION: u8 = 1;

/// Keeps contents apart from whatever else the fingerprint key is used for.
const CONTENT_PREFIX: &[u8] = b"kyc-worker/content/v1\0";

/// Tells a key from another one, and from whatever else it is used for.
const KEY_PREFIX: &[u8] = b"kyc-worker/key/v1\0";

/// The AES-256-GCM keys that payloads are sealed with. Nonces are random, which is safe
/// for 2^32 payloads to a key.
#[derive(Clone)]
pub struct Keyring {
    /// Never empty. The first seals, all open.
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: String,
    cipher: Aes256Gcm,
}

/// A sealed payload, taken apart.
struct Sealed<'a> {
    /// Version, length of the key's id, and the id: authenticated together with the job's.
    head: &'a [u8],
    key_id: &'a str,
    nonce: &'a [u8; 12],
    /// With its tag of 16 bytes.
    ciphertext: &'a [u8],
}

/// Computes fingerprints with HMAC-SHA256, so that nobody without the key can try out
/// which content one belongs to.
#[derive(Clone)]
pub struct Fingerprinter(Hmac<Sha256>);

/// What is wrong with a key as it was configured, and what to do. Shows none of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyFault(String);

/// Why a sealed payload stays closed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OpenError {
    /// The bytes are no sealed payload, or one of a later version, or it holds no request.
    #[error("not a sealed request of version {VERSION}")]
    Malformed,
    /// The key with this id is not on the ring, or not any more.
    #[error("sealed with key {0}, which is not among the keys given")]
    UnknownKey(String),
    /// The bytes were altered, belong to another job, or the id now names another key.
    #[error("altered, another job's, or sealed with another key of the same id")]
    Tampered,
}

impl Keyring {
    /// Parses one bare Base64 key of 32 bytes, whose id is `default`, or several keys as
    /// `id:base64` with commas between: the first seals, all open.
    ///
    /// # Errors
    /// Which key is unfit and why.
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let entries: Vec<_> = text.split(',').map(str::trim).collect();
        // Named by its place: what stands where the id should may be the key.
        let at = |index, KeyFault(what)| KeyFault(format!("key {} of {} {what}", index + 1, entries.len()));
        let mut keys: Vec<Key> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let key = match entry.split_once(':') {
                Some((id, key)) => Key::parse(id, key),
                None if entries.len() == 1 => Key::parse("default", entry),
                None => Err(KeyFault("has no id; write id:base64".to_owned())),
            };
            let key = key.map_err(|fault| at(index, fault))?;
            if keys.iter().any(|known| known.id == key.id) {
                let fault = KeyFault("has another key's id; give it its own".to_owned());
                return Err(at(index, fault));
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    /// Seals a payload for one job.
    ///
    /// # Panics
    /// If the operating system has no random bytes to give.
    pub fn seal(&self, job_id: Uuid, plaintext: &[u8]) -> Vec<u8> {
        let Key { id, cipher } = &self.keys[0];
        let head = [&[VERSION, id.len() as u8], id.as_bytes()].concat();
        let nonce = Nonce::from(rand::random::<[u8; 12]>());
        let payload = Payload { msg: plaintext, aad: &[&head, &job_id.as_bytes()[..]].concat() };
        // Unwrap safety: refuses only payloads of more than 64 GiB.
        #[expect(clippy::expect_used)]
        let ciphertext = cipher.encrypt(&nonce, payload).expect("a payload is smaller than 64 GiB");
        [&head[..], &nonce, &ciphertext].concat()
    }

    /// Opens what was sealed for this job, with whichever key of the ring.
    ///
    /// # Errors
    /// Why it stays closed; nothing of the payload is returned then.
    pub fn open(&self, job_id: Uuid, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let sealed = Sealed::split(sealed).ok_or(OpenError::Malformed)?;
        let key = self.keys.iter().find(|key| key.id == sealed.key_id);
        let key = key.ok_or_else(|| OpenError::UnknownKey(sealed.key_id.to_owned()))?;
        let payload = Payload { msg: sealed.ciphertext, aad: &[sealed.head, job_id.as_bytes()].concat() };
        key.cipher.decrypt(&Nonce::from(*sealed.nonce), payload).map_err(|_| OpenError::Tampered)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring(..)")
    }
}

impl Key {
    fn parse(id: &str, key: &str) -> Result<Self, KeyFault> {
        if !is_id(id) {
            let what = "has an unfit id; use 1 to 32 letters, digits, _ and - before the colon";
            return Err(KeyFault(what.to_owned()));
        }
        let bytes = decode(key)?;
        let cipher = Aes256Gcm::new_from_slice(&bytes).map_err(|_| length_fault(&bytes))?;
        Ok(Self { id: id.to_owned(), cipher })
    }
}

impl Fingerprinter {
    /// Parses a Base64 key of at least 32 bytes.
    ///
    /// # Errors
    /// Why the key is unfit.
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let bytes = decode(text.trim())?;
        match Hmac::new_from_slice(&bytes) {
            Ok(mac) if bytes.len() >= 32 => Ok(Self(mac)),
            _ => Err(length_fault(&bytes)),
        }
    }

    /// The fingerprint of a request's content.
    pub fn content(&self, text: &str) -> [u8; 32] {
        self.begin(CONTENT_PREFIX).chain_update(text).finalize().into_bytes().into()
    }

    /// What tells this key from another one, and nothing of it.
    pub fn key_mac(&self) -> [u8; 32] {
        self.begin(KEY_PREFIX).finalize().into_bytes().into()
    }

    /// A MAC under this key that has read `prefix`, which keeps the key's uses apart.
    pub(crate) fn begin(&self, prefix: &[u8]) -> Hmac<Sha256> {
        self.0.clone().chain_update(prefix)
    }
}

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprinter(..)")
    }
}

fn is_id(text: &str) -> bool {
    matches!(text.len(), 1..=32) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn decode(key: &str) -> Result<Vec<u8>, KeyFault> {
    // The decoder's own error would quote a character of the key.
    BASE64_STANDARD
        .decode(key)
        .map_err(|_| KeyFault("is not padded Base64; make one with: openssl rand -base64 32".to_owned()))
}

fn length_fault(bytes: &[u8]) -> KeyFault {
    KeyFault(format!("has {} bytes and needs 32; make one with: openssl rand -base64 32", bytes.len()))
}

impl<'a> Sealed<'a> {
    fn split(bytes: &'a [u8]) -> Option<Self> {
        let [VERSION, length, ..] = bytes else {
            return None;
        };
        let (head, rest) = bytes.split_at_checked(2 + usize::from(*length))?;
        let key_id = str::from_utf8(&head[2..]).ok().filter(|id| is_id(id))?;
        let (nonce, ciphertext) = rest.split_first_chunk()?;
        Some(Self { head, key_id, nonce, ciphertext })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;

    const JOB: Uuid = Uuid::from_u128(1);
    const OTHER_JOB: Uuid = Uuid::from_u128(2);

    /// A key of this byte, over and over.
    fn key(byte: u8, length: usize) -> String {
        BASE64_STANDARD.encode(vec![byte; length])
    }

    fn ring(text: &str) -> Keyring {
        Keyring::parse(text).unwrap()
    }

    #[test]
    fn a_payload_opens_for_its_own_job_only() {
        let ring = ring(&key(1, 32));
        for plaintext in [&b""[..], b"payload", &[0; 65_536]] {
            let sealed = ring.seal(JOB, plaintext);
            assert_eq!(ring.open(JOB, &sealed).as_deref(), Ok(plaintext));
            assert_eq!(ring.open(OTHER_JOB, &sealed), Err(OpenError::Tampered));
            assert_ne!(ring.seal(JOB, plaintext), sealed, "a nonce was used twice");
        }
    }

    /// Known answers, made with another library: what is stored must open for ever.
    #[test]
    fn layout_and_fingerprint_stay_what_they_are() {
        let sealed = "AQdkZWZhdWx0AAECAwQFBgcICQoLy8fsSk+fYld1oG5n5aPE9M8YRY2lex8=";
        let sealed = BASE64_STANDARD.decode(sealed).unwrap();
        let ring = ring(&key(1, 32));
        assert_eq!(ring.open(JOB, &sealed).as_deref(), Ok(&b"payload"[..]));
        assert_eq!(ring.seal(JOB, b"payload")[..9], sealed[..9]);

        let fingerprint = Fingerprinter::parse(&key(1, 32)).unwrap().content("a");
        assert_eq!(fingerprint[..6], [0xd2, 0xd2, 0xa8, 0xfb, 0xbf, 0x35]);
    }

    #[test]
    fn keys_rotate() {
        let (old, new) = (key(1, 32), key(2, 32));
        let bare = ring(&old);
        let rotated = ring(&format!("2026:{new}, default:{old}"));
        let retired = ring(&format!("2026:{new}"));

        let before = bare.seal(JOB, b"before");
        assert_eq!(rotated.open(JOB, &before).as_deref(), Ok(&b"before"[..]));
        assert_eq!(retired.open(JOB, &before), Err(OpenError::UnknownKey("default".to_owned())));

        let after = rotated.seal(JOB, b"after");
        assert_eq!(retired.open(JOB, &after).as_deref(), Ok(&b"after"[..]));
        assert_eq!(bare.open(JOB, &after), Err(OpenError::UnknownKey("2026".to_owned())));
        assert_eq!(ring(&new).open(JOB, &before), Err(OpenError::Tampered));
    }

    #[test]
    fn what_is_no_sealed_payload_is_malformed() {
        let ring = ring(&key(1, 32));
        let sealed = ring.seal(JOB, b"");
        for bytes in [&b""[..], b"\x01", b"\x01\x07defa", b"\x01\0", &sealed[..20], b"\x02\x01a"] {
            assert_eq!(ring.open(JOB, bytes), Err(OpenError::Malformed), "{bytes:?}");
        }
        assert_eq!(ring.open(JOB, &sealed[..36]), Err(OpenError::Tampered));
    }

    #[test]
    fn an_unfit_key_is_named_by_its_place_and_never_shown() {
        let (good, short, long) = (key(1, 32), key(2, 31), key(3, 33));
        let base64 = "is not padded Base64; make one with: openssl rand -base64 32";
        let id = "has an unfit id; use 1 to 32 letters, digits, _ and - before the colon";
        let length = |n| format!("has {n} bytes and needs 32; make one with: openssl rand -base64 32");
        for (text, place, what) in [
            ("", "1 of 1", length(0)),
            (&short, "1 of 1", length(31)),
            (&long, "1 of 1", length(33)),
            ("not base64", "1 of 1", base64.to_owned()),
            (good.trim_end_matches('='), "1 of 1", base64.to_owned()),
            (&format!("a:{good},b:{short}"), "2 of 2", length(31)),
            (&format!("a:{good},b:{good}="), "2 of 2", base64.to_owned()),
            (&format!("a:{good},{good}"), "2 of 2", "has no id; write id:base64".to_owned()),
            (&format!("a:{good},"), "2 of 2", "has no id; write id:base64".to_owned()),
            (&format!("a:{good},a:{good}"), "2 of 2", "has another key's id; give it its own".to_owned()),
            (&format!(":{good}"), "1 of 1", id.to_owned()),
            (&format!("{good}:a"), "1 of 1", id.to_owned()),
            (&format!("é:{good}"), "1 of 1", id.to_owned()),
            (&format!("{}:{good}", "a".repeat(33)), "1 of 1", id.to_owned()),
        ] {
            let fault = Keyring::parse(text).unwrap_err().to_string();
            assert_eq!(fault, format!("key {place} {what}"), "{text}");
        }
        assert!(Keyring::parse(&format!("{}:{good}\n", "a".repeat(32))).is_ok());
    }

    #[test]
    fn a_fingerprint_depends_on_key_and_content_only() {
        let first = Fingerprinter::parse(&key(1, 32)).unwrap();
        let other = Fingerprinter::parse(&key(2, 64)).unwrap();
        assert_eq!(first.content("a"), first.content("a"));
        assert_ne!(first.content("a"), first.content("b"));
        assert_ne!(first.content("a"), other.content("a"));

        for (text, expected) in [
            (key(1, 31), "has 31 bytes and needs 32; make one with: openssl rand -base64 32"),
            ("-".to_owned(), "is not padded Base64; make one with: openssl rand -base64 32"),
        ] {
            assert_eq!(Fingerprinter::parse(&text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", ring(&key(1, 32))), "Keyring(..)");
        let fingerprinter = Fingerprinter::parse(&key(1, 32)).unwrap();
        assert_eq!(format!("{fingerprinter:?}"), "Fingerprinter(..)");
    }

    proptest! {
        #[test]
        fn a_payload_with_any_byte_changed_stays_closed(
            plaintext in any::<Vec<u8>>(), at in any::<Index>(), flip in 1..=u8::MAX,
        ) {
            let ring = ring(&format!("a:{},b:{}", key(1, 32), key(2, 32)));
            let mut sealed = ring.seal(JOB, &plaintext);
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert!(ring.open(JOB, &sealed).is_err());
            prop_assert!(ring.open(JOB, &sealed[..at]).is_err());
        }
    }
}
