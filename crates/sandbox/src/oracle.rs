//! The oracle: what the provider was asked for and what it did, in order. Tests compare the
//! worker's records with it, so it records from the provider's side only and never learns
//! what the worker believes.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use serde::Serialize;
use uuid::Uuid;

use super::{customer::Status, provider::Update};

/// One update request whose body arrived completely.
#[derive(Serialize)]
pub(super) struct Patch {
    pub(super) seq: u64,
    pub(super) at: String,
    pub(super) customer_id: Option<String>,
    /// `document_front_image_url`: by it a test ties a request to a job.
    pub(super) link: Option<String>,
    pub(super) document_type: Option<String>,
    pub(super) body_sha256: String,
    /// The names of the headers that it came with.
    pub(super) headers: Vec<String>,
    pub(super) timestamp: Option<i64>,
    pub(super) authenticated: bool,
    pub(super) outcome: String,
    /// HTTP status answered; null while, or if, there is no answer.
    pub(super) status: Option<u16>,
    pub(super) rule: Option<u64>,
}

/// One update applied.
#[derive(Serialize)]
pub(super) struct Applied {
    pub(super) seq: u64,
    pub(super) at: String,
    pub(super) patch_seq: Option<u64>,
    pub(super) customer_id: Uuid,
    pub(super) link: String,
    /// 1 for the customer's first.
    pub(super) nth: u32,
}

/// One `GET /customer/{id}`.
#[derive(Serialize)]
pub(super) struct Read {
    pub(super) seq: u64,
    pub(super) at: String,
    pub(super) customer_id: Option<String>,
    /// HTTP status answered; null while, or if, there is no answer.
    pub(super) status: Option<u16>,
    /// The customer's status at that moment; null where there was none to tell.
    pub(super) customer_status: Option<Status>,
    pub(super) rule: Option<u64>,
}

/// What became of an update request.
pub(super) enum Fate {
    Applied,
    AppliedLate,
    Refused(String),
    RefusedLate(String),
    NotApplied { rule: u64 },
}

#[derive(Default, Serialize)]
pub(super) struct Counts {
    patches: u64,
    /// Heads whose body never arrived.
    incomplete: u64,
    authenticated: u64,
    applied: u64,
    applied_late: u64,
    refused: u64,
    not_applied: u64,
    /// Received, and neither applied nor refused yet.
    pending: u64,
    reads: u64,
}

#[derive(Default)]
pub(super) struct Oracle {
    keeps_records: bool,
    /// Sequence numbers go on over a reset, so that a request from before it finds no record.
    last_seq: u64,
    reset_at_seq: u64,
    pub(super) counts: Counts,
    pub(super) patches: BTreeMap<u64, Patch>,
    pub(super) updates: BTreeMap<u64, Applied>,
    pub(super) reads: BTreeMap<u64, Read>,
}

pub(super) fn timestamp() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

impl Oracle {
    pub(super) fn new(keeps_records: bool) -> Self {
        Self { keeps_records, ..Self::default() }
    }

    pub(super) fn reset(&mut self) {
        *self = Self {
            keeps_records: self.keeps_records,
            last_seq: self.last_seq,
            reset_at_seq: self.last_seq,
            ..Self::default()
        };
    }

    fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Whether the request was received since the last reset.
    pub(super) fn remembers(&self, seq: Option<u64>) -> bool {
        seq.is_some_and(|seq| seq > self.reset_at_seq)
    }

    /// Records an update request as received. `record` is not called where only counts are kept.
    pub(super) fn patch_received(
        &mut self,
        is_authenticated: bool,
        record: impl FnOnce(u64) -> Patch,
    ) -> u64 {
        let seq = self.next_seq();
        self.counts.patches += 1;
        self.counts.pending += 1;
        self.counts.authenticated += u64::from(is_authenticated);
        if self.keeps_records {
            self.patches.insert(seq, record(seq));
        }
        seq
    }

    pub(super) fn patch_incomplete(&mut self) {
        self.counts.incomplete += 1;
    }

    pub(super) fn patch_decided(&mut self, seq: Option<u64>, fate: Fate) {
        let Some(seq) = seq.filter(|_| self.remembers(seq)) else {
            return;
        };
        let counts = &mut self.counts;
        counts.pending -= 1;
        let (count, outcome) = match fate {
            Fate::Applied => (&mut counts.applied, "applied".to_owned()),
            Fate::AppliedLate => {
                counts.applied_late += 1;
                (&mut counts.applied, "applied late".to_owned())
            }
            Fate::Refused(reason) => (&mut counts.refused, format!("refused: {reason}")),
            Fate::RefusedLate(reason) => (&mut counts.refused, format!("refused late: {reason}")),
            Fate::NotApplied { rule } => (&mut counts.not_applied, format!("not applied: rule {rule}")),
        };
        *count += 1;
        if let Some(patch) = self.patches.get_mut(&seq) {
            patch.outcome = outcome;
        }
    }

    pub(super) fn update_applied(&mut self, patch_seq: Option<u64>, update: &Update, nth: u32) {
        if !self.keeps_records {
            return;
        }
        let seq = self.next_seq();
        let applied = Applied {
            seq,
            at: timestamp(),
            patch_seq,
            customer_id: update.customer_id,
            link: update.link.clone(),
            nth,
        };
        self.updates.insert(seq, applied);
    }

    /// Records a read as received. `record` is not called where only counts are kept.
    pub(super) fn read_received(&mut self, record: impl FnOnce(u64) -> Read) -> u64 {
        let seq = self.next_seq();
        self.counts.reads += 1;
        if self.keeps_records {
            self.reads.insert(seq, record(seq));
        }
        seq
    }

    pub(super) fn read_done(&mut self, seq: Option<u64>, customer_status: Status) {
        if let Some(read) = seq.and_then(|seq| self.reads.get_mut(&seq)) {
            read.customer_status = Some(customer_status);
        }
    }

    /// Completes the record of either kind of request.
    pub(super) fn answered(&mut self, seq: u64, status: u16) {
        if let Some(patch) = self.patches.get_mut(&seq) {
            patch.status = Some(status);
        } else if let Some(read) = self.reads.get_mut(&seq) {
            read.status = Some(status);
        }
    }

    /// Links applied more than once: a promise broken. None where only counts are kept.
    pub(super) fn links_applied_twice(&self) -> Option<usize> {
        let mut times: HashMap<&str, u32> = HashMap::new();
        for update in self.updates.values() {
            *times.entry(&update.link).or_default() += 1;
        }
        self.keeps_records.then(|| times.values().filter(|times| **times > 1).count())
    }
}
