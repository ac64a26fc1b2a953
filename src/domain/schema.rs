//! The message contract as a JSON Schema, for publishers and their tools. It refuses
//! nothing that [`Job::parse`](super::job::Job::parse) accepts; what a schema cannot say,
//! its descriptions do.

// Only their shape is used.
#![expect(dead_code)]

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::job::Rules;

/// A customer's document update, to be submitted to the DollarPe KYC API. UTF-8 JSON of at
/// most 64 KiB; a key twice in an object, or a number that JSON and Python print
/// differently, makes it invalid.
#[derive(JsonSchema)]
#[schemars(rename = "DocumentUpdate", deny_unknown_fields)]
struct DocumentUpdate {
    /// The provider's customer.
    customer_id: Uuid,
    /// The customer's address: 1 to 1,000 characters once trimmed, without control
    /// characters other than line breaks and tabs.
    #[schemars(regex(pattern = r"\S"))]
    full_address: String,
    /// The kind of document, one that the provider supports for the customer.
    document_type: String,
    /// Where the provider fetches the document's front.
    document_front_image_url: Link,
    /// Where the provider fetches the document's back.
    document_back_image_url: Link,
    document_details: DocumentDetails,
    /// Names the job: the same one delivered twice is sent once. Needed unless it is the
    /// AMQP message_id; where both are UUIDs, they must be the same.
    #[serde(default)]
    #[schemars(with = "Uuid")]
    job_id: Option<Uuid>,
    /// When the customer asked for it (RFC 3339): of two jobs of a customer the later one
    /// wins. Else the AMQP timestamp, else the time of receipt.
    #[serde(default)]
    #[schemars(with = "Timestamp")]
    requested_at: Option<Timestamp>,
    /// After this time (RFC 3339) the job is not sent any more. Later than requested_at.
    #[serde(default)]
    #[schemars(with = "Timestamp")]
    expires_at: Option<Timestamp>,
}

/// What the document says.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DocumentDetails {
    /// The number of an Aadhaar card, the file number of a passport, and so on: printable
    /// characters, single spaces only between others.
    #[schemars(length(min = 1, max = 64))]
    document_number: String,
    /// Whatever else the provider wants of this type of document.
    #[serde(default)]
    #[schemars(with = "Map<String, Value>")]
    additional_data: Option<Map<String, Value>>,
}

struct Link;

impl JsonSchema for Link {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Link".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "uri", "maxLength": 2048 })
    }
}

struct Timestamp;

impl JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// The schema of a message's body (JSON Schema, draft 2020-12), under these rules.
pub fn job_schema(rules: &Rules) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let schema = settings.into_generator().into_root_schema_for::<DocumentUpdate>();
    let mut schema = schema.to_value();
    let properties = &mut schema["properties"];
    properties["document_type"]["enum"] = json!(rules.document_types);
    for link in ["document_front_image_url", "document_back_image_url"] {
        // In any case, as schemes are.
        let secure = if rules.allow_http_links { "[Ss]?" } else { "[Ss]" };
        properties[link]["pattern"] = json!(format!("^[Hh][Tt][Tt][Pp]{secure}://"));
        if !rules.allow_extensionless_links {
            let said = properties[link]["description"].as_str().unwrap_or_default();
            properties[link]["description"] =
                json!(format!("{said} Its path ends in .jpg, .jpeg, .png or .pdf."));
        }
    }
    schema["examples"] = json!([example()]);
    schema
}

/// The provider's documented request body: a valid job.
pub fn example() -> Value {
    json!({
        "customer_id": "4e6f1b20-a73c-11ec-b909-0242ac120002",
        "full_address": "FULL_ADDRESS_OF_THE_CUSTOMER",
        "document_type": "PASSPORT",
        "document_front_image_url": "https://files.example.com/front.jpg",
        "document_back_image_url": "https://files.example.com/back.png",
        "document_details": { "document_number": "123456123456", "additional_data": {} }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(body: &Value) -> bool {
        jsonschema::validator_for(&job_schema(&Rules::default())).expect("a schema").is_valid(body)
    }

    /// The example with the value at `pointer` changed.
    fn with(pointer: &str, value: Value) -> Value {
        let mut body = example();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        body.pointer_mut(parent).expect("it is there")[key] = value;
        body
    }

    #[test]
    fn it_accepts_the_documented_example_with_or_without_our_fields() {
        assert!(accepts(&example()));
        assert!(accepts(&with("/job_id", json!("3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11"))));
        assert!(accepts(&with("/expires_at", json!("2026-11-24T10:00:00Z"))));
    }

    #[test]
    fn it_refuses_what_a_publisher_gets_wrong() {
        for (pointer, value) in [
            ("/customer_id", json!(5)),
            ("/full_address", json!("  ")),
            ("/document_type", json!("LIBRARY_CARD")),
            ("/document_front_image_url", json!("ftp://files.example.com/front.jpg")),
            ("/document_details", json!({})),
            ("/document_details/document_number", json!("")),
            ("/document_details/issued", json!("2020")),
            ("/adress", json!("x")),
            ("/job_id", json!(null)),
        ] {
            assert!(!accepts(&with(pointer, value)), "{pointer}");
        }
    }
}
