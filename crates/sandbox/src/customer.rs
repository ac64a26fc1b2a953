//! The customers as the provider knows them: their status, how it walks with time, and the
//! updates they have left. Pure: `now` comes in as an argument, and a status that time has
//! changed is found changed when it is next looked at.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Settings,
    provider::{Reply, Update},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Status {
    Unverified,
    Processing,
    Verified,
    Failed,
}

/// What a verification ends as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Verification {
    Verified,
    Failed,
}

#[derive(Serialize)]
pub(super) struct Customer {
    exists: bool,
    pub(super) status: Status,
    /// Shown whenever the status is FAILED.
    failure_reason: String,
    updates: u32,
    verifies_as: Verification,
    /// Overrides the sandbox's verification time.
    verification_ms: Option<u64>,
    pub(super) document_type: Option<String>,
    /// When PROCESSING is over.
    #[serde(skip)]
    processing_until: Option<Instant>,
}

/// What the admin interface may change of a customer; what is absent stays.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    exists: Option<bool>,
    status: Option<Status>,
    failure_reason: Option<String>,
    updates: Option<u32>,
    verifies_as: Option<Verification>,
    verification_ms: Option<u64>,
    document_type: Option<String>,
}

impl Customer {
    fn first_seen() -> Self {
        Self {
            exists: true,
            status: Status::Failed,
            failure_reason: "DOCUMENT_VERIFICATION_FAILED".to_owned(),
            updates: 0,
            verifies_as: Verification::Verified,
            verification_ms: None,
            document_type: None,
            processing_until: None,
        }
    }

    pub(super) fn failure_reason(&self) -> Option<&str> {
        (self.status == Status::Failed).then_some(self.failure_reason.as_str())
    }

    fn settle(&mut self, now: Instant) {
        if self.processing_until.is_some_and(|until| until <= now) {
            self.processing_until = None;
            self.status = match self.verifies_as {
                Verification::Verified => Status::Verified,
                Verification::Failed => Status::Failed,
            };
        }
    }

    fn set_status(&mut self, status: Status, settings: &Settings, now: Instant) {
        let verification_time =
            self.verification_ms.map_or(*settings.verification_time, Duration::from_millis);
        self.status = status;
        self.processing_until = (status == Status::Processing).then(|| now + verification_time);
    }

    pub(super) fn change(&mut self, change: Change, settings: &Settings, now: Instant) {
        self.exists = change.exists.unwrap_or(self.exists);
        self.failure_reason = change.failure_reason.unwrap_or_else(|| self.failure_reason.clone());
        self.updates = change.updates.unwrap_or(self.updates);
        self.verifies_as = change.verifies_as.unwrap_or(self.verifies_as);
        self.verification_ms = change.verification_ms.or(self.verification_ms);
        self.document_type = change.document_type.or_else(|| self.document_type.take());
        if let Some(status) = change.status {
            self.set_status(status, settings, now);
        }
    }

    /// `PATCH /kyc/mock-kyc-status`: from PROCESSING to any of four words, from an ended
    /// verification back to UNVERIFIED, and nowhere else.
    ///
    /// # Errors
    /// The provider's refusal.
    pub(super) fn mock_status(&mut self, word: &str, settings: &Settings, now: Instant) -> Result<(), Reply> {
        let status = match (self.status, word) {
            (Status::Processing, "VERIFIED") => Status::Verified,
            (Status::Processing, "DOCUMENT_VERIFICATION_FAILED" | "TAX_VERIFICATION_FAILED") => {
                self.failure_reason = word.to_owned();
                Status::Failed
            }
            (Status::Processing | Status::Verified | Status::Failed, "UNVERIFIED") => Status::Unverified,
            _ => {
                return Err(Reply::field_refused("kyc_status", "Invalid status transition."));
            }
        };
        self.set_status(status, settings, now);
        Ok(())
    }
}

/// All customers. One exists from the moment it is first asked for, the nil UUID never.
#[derive(Default)]
pub(super) struct Customers {
    by_id: HashMap<Uuid, Customer>,
    document_owners: HashMap<String, Uuid>,
}

impl Customers {
    /// The customer as it is at `now`, whether or not the provider admits that it exists.
    pub(super) fn record(&mut self, id: Uuid, now: Instant) -> &mut Customer {
        let customer = self.by_id.entry(id).or_insert_with(Customer::first_seen);
        customer.settle(now);
        customer
    }

    /// All customers as they are at `now`.
    pub(super) fn records(&mut self, now: Instant) -> impl Iterator<Item = (Uuid, &Customer)> {
        self.by_id.iter_mut().map(move |(id, customer)| {
            customer.settle(now);
            (*id, &*customer)
        })
    }

    /// # Errors
    /// The provider's refusal of a customer that does not exist.
    pub(super) fn get(&mut self, id: Uuid, now: Instant) -> Result<&mut Customer, Reply> {
        if id.is_nil() {
            return Err(Reply::customer_not_found());
        }
        let customer = self.record(id, now);
        if customer.exists { Ok(customer) } else { Err(Reply::customer_not_found()) }
    }

    /// Whether an update would be applied now.
    ///
    /// # Errors
    /// The provider's refusal.
    pub(super) fn check(&mut self, update: &Update, settings: &Settings, now: Instant) -> Result<(), Reply> {
        let owner = self.document_owners.get(&update.document_number).copied();
        let customer = self.get(update.customer_id, now)?;
        if settings.unique_documents && owner.is_some_and(|owner| owner != update.customer_id) {
            return Err(Reply::refused("KYC already in use"));
        }
        if customer.updates >= settings.update_limit {
            return Err(Reply::refused("Kyc update limit exceeded"));
        }
        Ok(())
    }

    /// Applies an update and returns how many the customer has now had.
    ///
    /// # Errors
    /// The provider's refusal; nothing has changed.
    pub(super) fn apply(&mut self, update: &Update, settings: &Settings, now: Instant) -> Result<u32, Reply> {
        self.check(update, settings, now)?;
        self.document_owners.insert(update.document_number.clone(), update.customer_id);
        let customer = self.record(update.customer_id, now);
        customer.updates += 1;
        customer.document_type = Some(update.document_type.clone());
        customer.set_status(Status::Processing, settings, now);
        Ok(customer.updates)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn updates_max(&self) -> u32 {
        self.by_id.values().map(|customer| customer.updates).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(customer: u128) -> Update {
        Update {
            customer_id: Uuid::from_u128(customer),
            link: "https://docs.example/front.pdf".to_owned(),
            document_type: "AADHAAR".to_owned(),
            document_number: "123456123456".to_owned(),
        }
    }

    #[test]
    fn an_applied_update_is_processing_until_its_verification_ends() {
        let (mut customers, settings, t0) = (Customers::default(), Settings::default(), Instant::now());
        assert_eq!(customers.record(Uuid::from_u128(1), t0).status, Status::Failed);

        assert_eq!(customers.apply(&update(1), &settings, t0).unwrap(), 1);

        let just_before = t0 + *settings.verification_time - Duration::from_millis(1);
        assert_eq!(customers.record(Uuid::from_u128(1), just_before).status, Status::Processing);
        let customer = customers.record(Uuid::from_u128(1), t0 + *settings.verification_time);
        assert_eq!(customer.status, Status::Verified);
        assert_eq!(customer.failure_reason(), None);
    }

    #[test]
    fn the_fourth_update_is_refused_and_changes_nothing() {
        let (mut customers, settings, t0) = (Customers::default(), Settings::default(), Instant::now());
        for nth in 1..=3 {
            assert_eq!(customers.apply(&update(1), &settings, t0).unwrap(), nth);
        }
        let later = t0 + *settings.verification_time;
        let refusal = customers.apply(&update(1), &settings, later).unwrap_err();
        assert_eq!(refusal.reason(), "Kyc update limit exceeded");
        let customer = customers.record(Uuid::from_u128(1), later);
        assert_eq!((customer.updates, customer.status), (3, Status::Verified));
    }

    #[test]
    fn a_document_belongs_to_one_customer_only_where_that_is_asked_for() {
        let mut settings = Settings { unique_documents: true, ..Settings::default() };
        let (mut customers, t0) = (Customers::default(), Instant::now());
        customers.apply(&update(1), &settings, t0).unwrap();
        customers.apply(&update(1), &settings, t0).unwrap();
        let refusal = customers.apply(&update(2), &settings, t0).unwrap_err();
        assert_eq!(refusal.reason(), "KYC already in use");
        settings.unique_documents = false;
        assert_eq!(customers.apply(&update(2), &settings, t0).unwrap(), 1);
    }

    #[test]
    fn the_nil_customer_never_exists() {
        let (mut customers, settings, t0) = (Customers::default(), Settings::default(), Instant::now());
        let refusal = customers.apply(&update(0), &settings, t0).unwrap_err();
        assert_eq!(refusal.reason(), "Customer not found or access denied");
    }

    #[test]
    fn mocked_statuses_follow_the_documented_transitions_only() {
        #[track_caller]
        fn check(from: Status, word: &str, expected: Option<(Status, Option<&str>)>) {
            let (mut customer, settings) = (Customer::first_seen(), Settings::default());
            customer.set_status(from, &settings, Instant::now());
            let mocked = customer.mock_status(word, &settings, Instant::now());
            assert_eq!(mocked.is_ok(), expected.is_some(), "{from:?} to {word}");
            let (status, reason) = expected.unwrap_or((from, customer.failure_reason()));
            assert_eq!((customer.status, customer.failure_reason()), (status, reason));
        }
        use Status::{Failed, Processing, Unverified, Verified};
        check(Processing, "VERIFIED", Some((Verified, None)));
        check(Processing, "UNVERIFIED", Some((Unverified, None)));
        for reason in ["DOCUMENT_VERIFICATION_FAILED", "TAX_VERIFICATION_FAILED"] {
            check(Processing, reason, Some((Failed, Some(reason))));
            check(Verified, reason, None);
        }
        check(Processing, "KYC_FAILED", None);
        check(Failed, "UNVERIFIED", Some((Unverified, None)));
        check(Verified, "UNVERIFIED", Some((Unverified, None)));
        check(Failed, "VERIFIED", None);
        check(Unverified, "UNVERIFIED", None);
        check(Unverified, "VERIFIED", None);
    }
}
