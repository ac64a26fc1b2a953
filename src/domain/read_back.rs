//! What a look at a customer says.

use serde_json::Value;

use super::verdict::{Answer, Body, Exchange, Misconfiguration, Verdict, classify};
use std::time::SystemTime;

/// What a GET of a customer told us. Personal data in the answer is dropped here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reading {
    /// The customer exists.
    Customer {
        /// The verification status, as the provider wrote it.
        status: String,
        /// Why the verification failed.
        failure_reason: Option<String>,
        /// The document type on file.
        document_type: Option<String>,
    },
    /// There is no such customer, says the provider in its own envelope.
    NotFound,
    /// The provider, or a proxy before it, refused us.
    Misconfigured(Misconfiguration),
    /// The read failed and tells nothing.
    Failed,
}

/// Reads the answer to a GET of a customer.
pub fn read_customer(exchange: &Exchange, now: SystemTime) -> Reading {
    if let Exchange::Answered(Answer { status: 200, body: Body::Whole(bytes), .. }) = exchange {
        let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let text = |key: &str| value["data"][key].as_str().map(str::to_owned);
        return match text("status").filter(|_| value["status"] == Value::Bool(true)) {
            Some(status) => Reading::Customer {
                status,
                failure_reason: text("failure_reason"),
                document_type: text("document_type"),
            },
            None => Reading::Failed,
        };
    }
    match classify(exchange, &[], now) {
        Verdict::Rejected(super::verdict::Rejection::CustomerNotFound) => Reading::NotFound,
        Verdict::Misconfigured(cause) => Reading::Misconfigured(cause),
        _ => Reading::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, expected: Reading) {
        let body = Body::Whole(body.as_bytes().to_vec());
        let exchange = Exchange::Answered(Answer { status, retry_after: None, body });
        assert_eq!(read_customer(&exchange, SystemTime::UNIX_EPOCH), expected);
    }

    #[test]
    fn every_answer_to_a_look_has_its_reading() {
        check(
            200,
            r#"{"status":true,"data":{"id":"x","status":"FAILED","failure_reason":"KYC_FAILED","full_name":"N"}}"#,
            Reading::Customer {
                status: "FAILED".to_owned(),
                failure_reason: Some("KYC_FAILED".to_owned()),
                document_type: None,
            },
        );
        check(200, r#"{"status":false,"data":{"status":"FAILED"}}"#, Reading::Failed);
        check(200, "<html>", Reading::Failed);
        check(500, "", Reading::Failed);
        check(401, "", Reading::Misconfigured(Misconfiguration::ApiKey));
        check(
            400,
            r#"{"status":false,"message":"Customer not found or access denied","errors":{},"data":null}"#,
            Reading::NotFound,
        );
    }
}
