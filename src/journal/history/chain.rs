//! The chain over what a job went through: a MAC over each entry of its history together with
//! the MAC before it, so that no entry can be changed, removed, added or moved without the key.
//! What is hashed is settled here; where its parts are kept, by whoever writes or audits them.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;

use crate::seal::Fingerprinter;

/// Keeps histories apart from whatever else the fingerprint key is used for.
const HISTORY_PREFIX: &[u8] = b"kyc-worker/history/v1\0";

/// Postgres counts its microseconds from here (its documentation, "Date/Time Types").
const POSTGRES_EPOCH: OffsetDateTime = datetime!(2000-01-01 0:00 UTC);

/// Where a job's chain stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// The newest entry's MAC; all zero before the first.
    pub mac: [u8; 32],
    /// How many entries there are.
    pub entries: i32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub job_id: Uuid,
    pub customer_id: Uuid,
}

/// One thing that a job went through, as the rows have it. None of it is touched by `forget`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) enum Entry<'a> {
    Attempt {
        number: i32,
        worker: &'a str,
        begun_at: OffsetDateTime,
        signed_at: OffsetDateTime,
        ended_at: OffsetDateTime,
        verdict: &'a str,
        /// Of an acceptance, the provider's reference.
        detail: Option<&'a str>,
        http_status: Option<i32>,
        provider_message: Option<&'a str>,
        error: Option<&'a str>,
        duration_ms: Option<i32>,
    },
    /// A worker that had lost its claim told what became of its attempt.
    LateVerdict {
        number: i32,
        verdict: &'a str,
    },
    Observation(Observation<'a>),
}

/// What a read of the customer said, or a webhook.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct Observation<'a> {
    pub at: OffsetDateTime,
    pub purpose: &'a str,
    pub status: Option<&'a str>,
    pub failure_reason: Option<&'a str>,
    pub error: Option<&'a str>,
    pub conclusion: Option<&'a str>,
    /// Of a configuration.
    pub document_types: Option<&'a str>,
}

/// A value of an entry. Its encoding says what it is and where it ends.
enum Field<'a> {
    Null,
    Number(i64),
    Text(&'a str),
}

impl Head {
    /// The head as a submission's row has it.
    pub(crate) fn of_row(chain: Option<[u8; 32]>, entries: i32) -> Self {
        Self { mac: chain.unwrap_or_default(), entries }
    }

    /// The head after one more entry.
    pub(crate) fn after(self, fingerprinter: &Fingerprinter, subject: Subject, entry: &Entry<'_>) -> Self {
        let entries = self.entries + 1;
        let mut mac = fingerprinter.begin(HISTORY_PREFIX);
        mac.update(&self.mac);
        mac.update(subject.job_id.as_bytes());
        mac.update(subject.customer_id.as_bytes());
        mac.update(&entries.to_be_bytes());
        entry.feed(&mut mac);
        Self { mac: mac.finalize().into_bytes().into(), entries }
    }
}

impl Entry<'_> {
    fn feed(&self, mac: &mut Hmac<Sha256>) {
        match *self {
            Self::Attempt {
                number,
                worker,
                begun_at,
                signed_at,
                ended_at,
                verdict,
                detail,
                http_status,
                provider_message,
                error,
                duration_ms,
            } => feed(
                mac,
                b'a',
                [
                    number.into(),
                    worker.into(),
                    begun_at.into(),
                    signed_at.into(),
                    ended_at.into(),
                    verdict.into(),
                    detail.into(),
                    http_status.into(),
                    provider_message.into(),
                    error.into(),
                    duration_ms.into(),
                ],
            ),
            Self::LateVerdict { number, verdict } => feed(mac, b'l', [number.into(), verdict.into()]),
            Self::Observation(Observation {
                at,
                purpose,
                status,
                failure_reason,
                error,
                conclusion,
                document_types,
            }) => {
                feed(
                    mac,
                    b'o',
                    [
                        at.into(),
                        purpose.into(),
                        status.into(),
                        failure_reason.into(),
                        error.into(),
                        conclusion.into(),
                    ],
                );
                // Behind the others, where there is any: what was chained before there were any stays so.
                if let Some(types) = document_types {
                    feed(mac, b't', [types.into()]);
                }
            }
        }
    }
}

fn feed<const N: usize>(mac: &mut Hmac<Sha256>, kind: u8, fields: [Field<'_>; N]) {
    mac.update(&[kind]);
    for field in fields {
        match field {
            Field::Null => mac.update(&[0]),
            Field::Number(number) => {
                mac.update(&[1]);
                mac.update(&number.to_be_bytes());
            }
            Field::Text(text) => {
                mac.update(&[2]);
                mac.update(&(text.len() as u64).to_be_bytes());
                mac.update(text.as_bytes());
            }
        }
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<Option<&'a str>> for Field<'a> {
    fn from(text: Option<&'a str>) -> Self {
        text.map_or(Self::Null, Self::Text)
    }
}

impl From<i32> for Field<'_> {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<Option<i32>> for Field<'_> {
    fn from(number: Option<i32>) -> Self {
        number.map_or(Self::Null, Self::from)
    }
}

/// In microseconds, cut off as sqlx cuts them off when it stores them.
impl From<OffsetDateTime> for Field<'_> {
    fn from(at: OffsetDateTime) -> Self {
        // Unwrap safety: `time` knows no year that does not fit.
        #[expect(clippy::expect_used)]
        let micros = i64::try_from((at - POSTGRES_EPOCH).whole_microseconds()).expect("a year before 10,000");
        Self::Number(micros)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::discriminant;

    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use proptest::prelude::*;

    use super::*;

    const SUBJECT: Subject = Subject { job_id: Uuid::from_u128(1), customer_id: Uuid::from_u128(2) };

    fn fingerprinter(byte: u8) -> Fingerprinter {
        Fingerprinter::parse(&BASE64_STANDARD.encode([byte; 32])).unwrap()
    }

    fn at(micros: i64) -> OffsetDateTime {
        POSTGRES_EPOCH + time::Duration::microseconds(micros)
    }

    /// Known answers, made with Python's `hmac` and `struct`: what is stored must verify for ever.
    #[test]
    fn what_is_hashed_stays_what_it_is() {
        let fingerprinter = fingerprinter(1);
        let mut head = Head::default();
        for (entry, expected) in [
            (
                Entry::Attempt {
                    number: 1,
                    worker: "worker-1",
                    begun_at: at(1),
                    signed_at: at(0) - time::Duration::nanoseconds(1_999),
                    ended_at: at(848_000_000_000_000),
                    verdict: "unknown",
                    detail: Some("server_error"),
                    http_status: Some(500),
                    provider_message: Some("öops"),
                    error: None,
                    duration_ms: Some(7),
                },
                "5d6d22ad627ee7141e0d258f3d147bc6aaa2584b40a260325c3d4d969749450f",
            ),
            (
                Entry::Observation(Observation {
                    at: at(848_000_000_500_000),
                    purpose: "read_back",
                    status: Some("FAILED"),
                    failure_reason: Some(""),
                    error: None,
                    conclusion: Some("confirming"),
                    document_types: None,
                }),
                "ca5534c5f9b1f338add29c369a2f1ce87bfc6df1392efddbc7128ff125e5ed5e",
            ),
            (
                Entry::LateVerdict { number: 1, verdict: "accepted" },
                "aba732e95a6fe6bae379393689d9efe0db36b1243d01c7f2b350642372662604",
            ),
        ] {
            head = head.after(&fingerprinter, SUBJECT, &entry);
            let mac: String = head.mac.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(mac, expected);
        }
        assert_eq!(head.entries, 3);
    }

    #[test]
    fn a_mac_depends_on_key_job_customer_place_and_what_came_before() {
        let entry = Entry::LateVerdict { number: 1, verdict: "accepted" };
        let first = Head::default().after(&fingerprinter(1), SUBJECT, &entry);
        let mut others = vec![
            Head::default().after(&fingerprinter(2), SUBJECT, &entry),
            first.after(&fingerprinter(1), SUBJECT, &entry),
            Head { entries: 1, ..Head::default() }.after(&fingerprinter(1), SUBJECT, &entry),
        ];
        for subject in [
            Subject { job_id: Uuid::from_u128(3), ..SUBJECT },
            Subject { customer_id: Uuid::from_u128(3), ..SUBJECT },
        ] {
            others.push(Head::default().after(&fingerprinter(1), subject, &entry));
        }
        assert!(others.iter().all(|other| other.mac != first.mac), "{others:?}");
    }

    /// An entry that owns its texts.
    #[derive(Clone, Debug)]
    struct Owned {
        kind: u8,
        numbers: [Option<i32>; 3],
        times: [i64; 3],
        texts: [Option<String>; 6],
    }

    impl Owned {
        fn entry(&self) -> Entry<'_> {
            let [a, b, c, d, e, f] = self.texts.each_ref().map(Option::as_deref);
            match self.kind {
                0 => Entry::Attempt {
                    number: self.numbers[0].unwrap_or_default(),
                    worker: a.unwrap_or_default(),
                    begun_at: at(self.times[0]),
                    signed_at: at(self.times[1]),
                    ended_at: at(self.times[2]),
                    verdict: b.unwrap_or_default(),
                    detail: c,
                    http_status: self.numbers[1],
                    provider_message: d,
                    error: e,
                    duration_ms: self.numbers[2],
                },
                1 => Entry::LateVerdict {
                    number: self.numbers[0].unwrap_or_default(),
                    verdict: a.unwrap_or_default(),
                },
                _ => Entry::Observation(Observation {
                    at: at(self.times[0]),
                    purpose: a.unwrap_or_default(),
                    status: b,
                    failure_reason: c,
                    error: d,
                    conclusion: e,
                    document_types: f,
                }),
            }
        }
    }

    /// Few different values, so that texts that move from one field to the next come up.
    fn owned() -> impl Strategy<Value = Owned> {
        let number = prop::option::of(prop_oneof![Just(0), Just(1), any::<i32>()]);
        let time = prop_oneof![Just(0_i64), Just(1), 0..1_000_000_000_000_000_i64];
        let text = prop::option::of(prop_oneof![Just(String::new()), "[ab]{1,3}", ".{0,20}"]);
        (
            0..3_u8,
            [number.clone(), number.clone(), number],
            [time.clone(), time.clone(), time],
            [text.clone(), text.clone(), text.clone(), text.clone(), text.clone(), text],
        )
            .prop_map(|(kind, numbers, times, texts)| Owned { kind, numbers, times, texts })
    }

    /// The entry with one of its parts taken from another.
    fn changed(entry: &Owned, other: &Owned, part: usize) -> Owned {
        let mut changed = entry.clone();
        match part {
            0 => changed.kind = other.kind,
            1..4 => changed.numbers[part - 1] = other.numbers[part - 1],
            4..7 => changed.times[part - 4] = other.times[part - 4],
            _ => changed.texts[part - 7] = other.texts[part - 7].clone(),
        }
        changed
    }

    proptest! {
        #[test]
        fn entries_that_differ_in_anything_have_different_macs(
            entry in owned(), other in owned(), part in 0..13_usize,
        ) {
            let fingerprinter = fingerprinter(1);
            let mac = |entry: &Owned| Head::default().after(&fingerprinter, SUBJECT, &entry.entry()).mac;
            for other in [changed(&entry, &other, part), other] {
                let is_same = discriminant(&entry.entry()) == discriminant(&other.entry())
                    && entry.entry() == other.entry();
                prop_assert_eq!(is_same, mac(&entry) == mac(&other));
            }
        }
    }
}
