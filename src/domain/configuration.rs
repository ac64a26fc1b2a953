//! What the provider says of the document types that a customer may use, and what follows for a job
//! before its update is sent.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use uuid::Uuid;

use super::job::is_document_type;
use super::verdict::{HttpOutcome, NotSent, Rejection, Verdict, classify};

/// For so long a customer's configuration is not asked for again.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);

/// A list with more types is no list of types.
const TYPES_MAX: usize = 100;

/// What an answer to `GET /kyc/configuration/{customer_id}` told.
#[derive(Clone, Debug, PartialEq)]
pub enum Configuration {
    /// The types that the customer may use: one at least.
    Lists(Vec<String>),
    /// The provider knows no such customer. A read proves nothing by that, and the update spends nothing
    /// where it is so: its own answer decides.
    NotFound,
    /// Nothing of the types. The attempt comes to this verdict.
    Unread(Verdict),
}

/// Reads an answer. `now` and `not_applied_statuses` are as for [`classify`].
///
/// An empty list tells nothing: a rejection cannot be taken back, and a customer without any type is not
/// documented.
pub fn read_configuration(
    outcome: &HttpOutcome,
    customer_id: Uuid,
    not_applied_statuses: &[u16],
    now: SystemTime,
) -> Configuration {
    match classify(outcome, customer_id, not_applied_statuses, now) {
        Verdict::Accepted(_) => match types_in(outcome) {
            Some(types) => Configuration::Lists(types),
            None => Configuration::Unread(UNREAD),
        },
        Verdict::Rejected(Rejection::CustomerNotFound) => Configuration::NotFound,
        // Of a read alone nobody knows what a refused field is.
        Verdict::Rejected(_) | Verdict::NotSent(_) | Verdict::Unknown(_) => Configuration::Unread(UNREAD),
        refused @ (Verdict::Throttled { .. } | Verdict::Misconfigured(_)) => Configuration::Unread(refused),
    }
}

const UNREAD: Verdict = Verdict::NotSent(NotSent::ConfigurationUnread);

/// The types that an answer lists. What no type is called is dropped: no job can name it.
fn types_in(outcome: &HttpOutcome) -> Option<Vec<String>> {
    let HttpOutcome::Answered(answer) = outcome else { return None };
    let body = answer.body.json()?;
    let listed = body["data"]["supported_document_types"].as_array()?;
    let texts: Option<Vec<&str>> = listed.iter().map(Value::as_str).collect();
    let types = texts?.into_iter().filter(|text| is_document_type(text)).map(str::to_owned);
    let types: Vec<String> = types.take(TYPES_MAX + 1).collect();
    (1..=TYPES_MAX).contains(&types.len()).then_some(types)
}

impl Configuration {
    /// Whether a job of this type may be sent; else what its attempt comes to.
    ///
    /// # Errors
    /// The verdict.
    pub fn allows(self, document_type: &str) -> Result<(), Verdict> {
        match self {
            Self::Lists(supported) if supported.iter().any(|known| known == document_type) => Ok(()),
            Self::Lists(supported) => {
                Err(Verdict::Rejected(Rejection::DocumentTypeUnsupported { supported }))
            }
            Self::NotFound => Ok(()),
            Self::Unread(verdict) => Err(verdict),
        }
    }

    /// The types, as the history keeps them.
    pub fn listed(&self) -> Option<String> {
        match self {
            Self::Lists(types) => Some(types.join(",")),
            Self::NotFound | Self::Unread(_) => None,
        }
    }

    /// The same, read back from the history.
    pub fn of_listed(listed: &str) -> Self {
        Self::Lists(listed.split(',').map(str::to_owned).collect())
    }

    /// The code of an answer that told nothing of the types.
    pub fn error_code(&self) -> Option<&'static str> {
        match self {
            Self::Lists(_) => None,
            Self::NotFound => Some(Rejection::CustomerNotFound.code()),
            Self::Unread(verdict) => Some(verdict.detail().unwrap_or(verdict.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::verdict::{Answer, Body, FailurePoint, Misconfiguration};

    fn answered(status: u16, body: &Value) -> HttpOutcome {
        let body = Body::Whole(body.to_string().into_bytes());
        HttpOutcome::Answered(Answer { status, body, ..Answer::default() })
    }

    fn check(outcome: &HttpOutcome, expected: Configuration) {
        let read = read_configuration(outcome, Uuid::from_u128(7), &[503], SystemTime::UNIX_EPOCH);
        assert_eq!(read, expected, "{outcome:?}");
    }

    #[test]
    fn a_list_of_types_is_read_and_nothing_else() {
        let with = |types: Value| json!({ "status": true, "data": { "supported_document_types": types } });
        let lists =
            |types: &[&str]| Configuration::Lists(types.iter().map(|name| (*name).to_owned()).collect());
        check(&answered(200, &with(json!(["AADHAAR", "VOTER_ID"]))), lists(&["AADHAAR", "VOTER_ID"]));
        check(&answered(200, &with(json!(["PASSPORT", "a word", "123456123456"]))), lists(&["PASSPORT"]));
        let many: Vec<String> = (0..=TYPES_MAX).map(|_| "PASSPORT".to_owned()).collect();
        for odd in
            [json!([]), json!(null), json!("PASSPORT"), json!(["PASSPORT", 7]), json!(["x"]), json!(many)]
        {
            check(&answered(200, &with(odd)), Configuration::Unread(UNREAD));
        }
        let of_another = json!({
            "status": true,
            "data": { "id": Uuid::from_u128(8), "supported_document_types": ["PASSPORT"] },
        });
        check(&answered(200, &of_another), Configuration::Unread(UNREAD));
        let not_ok = json!({ "status": false, "data": { "supported_document_types": ["PASSPORT"] } });
        check(&answered(200, &not_ok), Configuration::Unread(UNREAD));
    }

    #[test]
    fn an_answer_that_cannot_be_had_is_what_it_would_be_of_an_update() {
        let refusal =
            |message: &str| json!({ "status": false, "message": message, "errors": {}, "data": null });
        check(&answered(400, &refusal("Customer not found or access denied")), Configuration::NotFound);
        for unread in [
            HttpOutcome::Lost(FailurePoint::TimedOut),
            HttpOutcome::NotSent(NotSent::Connect),
            answered(500, &refusal("Internal Server Error")),
            answered(400, &json!({ "status": false, "errors": { "customer_id": ["This field is odd."] } })),
        ] {
            check(&unread, Configuration::Unread(UNREAD));
        }
        let misconfigured = |cause| Configuration::Unread(Verdict::Misconfigured(cause));
        check(&answered(401, &refusal("Unauthorized")), misconfigured(Misconfiguration::ApiKey));
        check(&answered(404, &json!({ "detail": "Not found." })), misconfigured(Misconfiguration::Endpoint));
        let throttled = Configuration::Unread(Verdict::Throttled { retry_after: None });
        check(&answered(429, &refusal("Slow down")), throttled.clone());
        check(&answered(503, &refusal("Maintenance")), throttled);
    }

    #[test]
    fn only_a_type_that_a_list_leaves_out_rejects_its_job() {
        let lists = Configuration::of_listed("AADHAAR,PASSPORT");
        assert_eq!(lists.listed().as_deref(), Some("AADHAAR,PASSPORT"));
        assert_eq!(lists.clone().allows("PASSPORT"), Ok(()));
        let supported = vec!["AADHAAR".to_owned(), "PASSPORT".to_owned()];
        let unsupported = Verdict::Rejected(Rejection::DocumentTypeUnsupported { supported });
        assert_eq!(lists.allows("VOTER_ID"), Err(unsupported));
        assert_eq!(Configuration::NotFound.allows("VOTER_ID"), Ok(()));
        assert_eq!(Configuration::Unread(UNREAD).allows("VOTER_ID"), Err(UNREAD));
    }
}
