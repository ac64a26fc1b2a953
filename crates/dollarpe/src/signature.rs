//! Signs requests as the provider's authentication guide asks, and verifies signatures
//! made the same way. Must not know what a body means, nor read a clock.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Holds one environment's credentials.
#[derive(Clone)]
pub struct Signer {
    api_key: String,
    /// Keyed with the API secret and fed `{api_key}|`, with which every message begins.
    mac: Hmac<Sha256>,
}

impl Signer {
    /// Keys a signer with the credentials of one environment; they are void in another.
    pub fn new(api_key: impl Into<String>, api_secret: &str) -> Self {
        let api_key = api_key.into();
        // Unwrap safety: HMAC takes keys of any length.
        #[expect(clippy::expect_used)]
        let mac = Hmac::<Sha256>::new_from_slice(api_secret.as_bytes())
            .expect("HMAC takes keys of any length")
            .chain_update(&api_key)
            .chain_update("|");
        Self { api_key, mac }
    }

    /// The value of `X-API-KEY`.
    pub fn api_key(&self) -> &str {
        &self.api_key
    }

    /// Computes `X-SIGNATURE` for a body (`{}` where a request has none) and the
    /// `X-TIMESTAMP` sent with it, in Unix seconds.
    pub fn sign(&self, timestamp: i64, canonical_body: impl AsRef<[u8]>) -> String {
        BASE64_STANDARD.encode(self.mac(timestamp, canonical_body).finalize().into_bytes())
    }

    /// Whether `signature` is ours for this timestamp and body, in constant time. How old
    /// a timestamp may be is the caller's to judge.
    pub fn verify(&self, timestamp: i64, canonical_body: impl AsRef<[u8]>, signature: &str) -> bool {
        BASE64_STANDARD
            .decode(signature)
            .is_ok_and(|signature| self.mac(timestamp, canonical_body).verify_slice(&signature).is_ok())
    }

    fn mac(&self, timestamp: i64, canonical_body: impl AsRef<[u8]>) -> Hmac<Sha256> {
        self.mac.clone().chain_update(timestamp.to_string()).chain_update("|").chain_update(canonical_body)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::ValueEnum;
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;
    use crate::canonical_json::{Json, Profile};

    /// Known answers, computed with Python's standard library.
    #[derive(Deserialize)]
    struct Vectors<'a> {
        api_key: &'a str,
        api_secret: &'a str,
        #[serde(borrow)]
        vectors: Vec<Vector<'a>>,
    }

    #[derive(Deserialize)]
    struct Vector<'a> {
        name: &'a str,
        timestamp: i64,
        #[serde(borrow)]
        body: &'a RawValue,
        profiles: BTreeMap<String, Answer>,
    }

    #[derive(Deserialize)]
    struct Answer {
        canonical_body: String,
        signature: String,
    }

    #[test]
    fn bodies_and_signatures_match_pythons() {
        let file = include_str!("../vectors/signature-vectors.json");
        let Vectors { api_key, api_secret, vectors } = serde_json::from_str(file).unwrap();
        let signer = Signer::new(api_key, api_secret);
        assert!(!vectors.is_empty());
        for vector in vectors {
            let body = Json::parse(vector.body.get().as_bytes()).unwrap();
            for profile in Profile::value_variants() {
                let name = format!("{}, {profile}", vector.name);
                let answer = &vector.profiles[profile.as_str()];
                let canonical = body.to_canonical(*profile);
                assert_eq!(canonical, answer.canonical_body, "{name}");
                let signature = signer.sign(vector.timestamp, &canonical);
                assert_eq!(signature, answer.signature, "{name}");
                assert!(signer.verify(vector.timestamp, &canonical, &signature), "{name}");
            }
        }
    }

    #[test]
    fn a_signature_of_anything_else_is_refused() {
        let signer = Signer::new("key", "secret");
        let signature = signer.sign(1_752_670_745, "{}");
        assert!(signer.verify(1_752_670_745, "{}", &signature));

        assert!(!signer.verify(1_752_670_746, "{}", &signature));
        assert!(!signer.verify(1_752_670_745, "{} ", &signature));
        assert!(!Signer::new("key", "other").verify(1_752_670_745, "{}", &signature));
        assert!(!Signer::new("other", "secret").verify(1_752_670_745, "{}", &signature));
        for not_a_signature in ["", "AAAA", "no base64", signature.trim_end_matches('=')] {
            assert!(!signer.verify(1_752_670_745, "{}", not_a_signature));
        }
    }

    #[test]
    fn debug_shows_no_credentials() {
        let signer = Signer::new("canary-key", "canary-secret");
        assert!(!format!("{signer:?}").contains("canary"));
    }

    #[test]
    fn profile_names_are_those_of_the_command_line() {
        for profile in Profile::value_variants() {
            assert_eq!(Profile::from_str(profile.as_str(), false), Ok(*profile));
        }
    }
}
