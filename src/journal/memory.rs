//! What this process has committed of late. A failover may lose what its standby had not received yet,
//! and these are the very writes that are then made again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::journal::rows::NewRow;
use crate::journal::statements::claim::Claim;
use crate::journal::statements::close::Closing;

/// What was committed longer ago is with every standby that is of any use.
const KEPT: Duration = Duration::from_secs(600);

/// Older ones are forgotten first: this is what some 15,000 jobs take.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// A write that was committed, on which something outside the database rests: an ack, an update that was
/// sent, an answer that was heard.
#[derive(Clone)]
pub(crate) enum Write {
    /// The job has its row.
    Opened(Arc<NewRow>),
    /// An attempt was begun.
    Begun(Box<Claim>),
    /// An attempt has its result, since then by the database's clock.
    Closed(Arc<Closing>, OffsetDateTime),
}

impl Write {
    pub fn job_id(&self) -> Uuid {
        match self {
            Self::Opened(row) => row.job_id,
            Self::Begun(claim) => claim.job.id,
            Self::Closed(closing, _) => closing.claim.job.id,
        }
    }

    pub fn customer_id(&self) -> Uuid {
        match self {
            Self::Opened(row) => row.customer_id,
            Self::Begun(claim) => claim.customer_id,
            Self::Closed(closing, _) => closing.claim.customer_id,
        }
    }

    /// The claim that the write was made on.
    pub fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Opened(_) => None,
            Self::Begun(claim) => Some(claim),
            Self::Closed(closing, _) => Some(&closing.claim),
        }
    }

    /// About how many bytes it keeps.
    fn size(&self) -> usize {
        let kept = match self {
            Self::Opened(row) => size_of::<NewRow>() + row.sealed.len() + row.document_type.len(),
            Self::Begun(_) => size_of::<Claim>(),
            Self::Closed(..) => size_of::<Closing>(),
        };
        kept + size_of::<(Instant, Self)>()
    }
}

/// The writes of the last minutes, the oldest first.
#[derive(Default)]
pub(crate) struct Memory {
    writes: Mutex<Writes>,
    /// The last heartbeat, by the database's clock.
    beat_at: Mutex<Option<OffsetDateTime>>,
}

#[derive(Default)]
struct Writes {
    all: VecDeque<(Instant, Write)>,
    bytes: usize,
    /// Whether older ones were forgotten.
    has_forgotten: bool,
}

impl Writes {
    fn add(&mut self, write: Write, now: Instant) {
        self.bytes += write.size();
        self.all.push_back((now, write));
        while let Some((at, oldest)) = self.all.front()
            && (self.bytes > BYTES_MAX || now.duration_since(*at) > KEPT)
        {
            self.bytes -= oldest.size();
            self.all.pop_front();
            self.has_forgotten = true;
        }
    }
}

impl Memory {
    pub fn add(&self, write: Write) {
        self.writes.lock().add(write, Instant::now());
    }

    /// Notes a heartbeat that was answered.
    pub fn note_beat(&self, at: OffsetDateTime) {
        *self.beat_at.lock() = Some(at);
    }

    pub fn beat_at(&self) -> Option<OffsetDateTime> {
        *self.beat_at.lock()
    }

    pub fn is_empty(&self) -> bool {
        self.writes.lock().all.is_empty()
    }

    /// The job of the oldest write, where there were older ones that are forgotten: if this one is lost,
    /// those may be, too.
    pub fn horizon(&self) -> Option<Uuid> {
        let writes = self.writes.lock();
        writes.all.front().filter(|_| writes.has_forgotten).map(|(_, write)| write.job_id())
    }

    /// What is remembered of each job, in the order of the writes.
    pub fn by_job(&self) -> Vec<Vec<Write>> {
        let mut jobs: Vec<Vec<Write>> = Vec::new();
        let mut places = HashMap::new();
        for (_, write) in &self.writes.lock().all {
            let place = *places.entry(write.job_id()).or_insert(jobs.len());
            match jobs.get_mut(place) {
                Some(job) => job.push(write.clone()),
                None => jobs.push(vec![write.clone()]),
            }
        }
        jobs
    }

    /// Forgets jobs whose rows are gone for good.
    pub fn forget(&self, jobs: &HashSet<Uuid>) {
        let mut writes = self.writes.lock();
        writes.all.retain(|(_, write)| !jobs.contains(&write.job_id()));
        writes.bytes = writes.all.iter().map(|(_, write)| write.size()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(job: u128, bytes: usize) -> Write {
        Write::Opened(Arc::new(NewRow {
            job_id: Uuid::from_u128(job),
            customer_id: Uuid::nil(),
            document_type: String::new(),
            document_number_last4: String::new(),
            content_hmac: [0; 32],
            requested_at: OffsetDateTime::UNIX_EPOCH,
            received_at: OffsetDateTime::UNIX_EPOCH,
            expires_at: None,
            expiring_link: None,
            correlation_id: None,
            trace: None,
            sealed: vec![0; bytes],
            t0: None,
        }))
    }

    fn remembered(memory: &Memory) -> Vec<(u128, usize)> {
        let jobs = memory.by_job();
        jobs.iter().map(|writes| (writes[0].job_id().as_u128(), writes.len())).collect()
    }

    #[test]
    fn a_jobs_writes_stay_together_and_in_order() {
        let memory = Memory::default();
        for job in [1, 2, 1, 3, 1] {
            memory.add(row(job, 0));
        }
        assert_eq!(remembered(&memory), [(1, 3), (2, 1), (3, 1)]);
        memory.forget(&[Uuid::from_u128(1)].into());
        assert_eq!(remembered(&memory), [(2, 1), (3, 1)]);
    }

    #[test]
    fn what_is_old_or_too_much_is_forgotten_first() {
        let (memory, begun) = (Memory::default(), Instant::now());
        let add = |write, after| memory.writes.lock().add(write, begun + after);
        add(row(1, 0), Duration::ZERO);
        add(row(2, 0), KEPT);
        assert_eq!(remembered(&memory), [(1, 1), (2, 1)], "for so long all is kept");
        assert_eq!(memory.horizon(), None, "nothing was before it");
        add(row(3, BYTES_MAX / 2), KEPT + Duration::from_millis(1));
        assert_eq!(remembered(&memory), [(2, 1), (3, 1)]);
        assert_eq!(memory.horizon(), Some(Uuid::from_u128(2)));
        add(row(4, BYTES_MAX / 2), KEPT);
        assert_eq!(remembered(&memory), [(4, 1)], "there is no room for both");
        for job in 5..100_000 {
            add(row(job, 1_000), KEPT);
        }
        let writes = memory.writes.lock();
        assert!(writes.bytes <= BYTES_MAX && writes.bytes > BYTES_MAX / 2);
        assert_eq!(writes.bytes, writes.all.iter().map(|(_, write)| write.size()).sum::<usize>());
    }
}
