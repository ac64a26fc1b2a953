//! What the provider's documentation says of a request and its answer: endpoints, the three
//! headers, the fields of an update, the shapes of errors. Pure: knows no socket and no clock.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use url::Url;
use uuid::Uuid;

use super::{Settings, customer::Customer};
use dollarpe::{
    canonical_json::{Fault, Json},
    signature::Signer,
};

pub(super) const BASE_PATH: &str = "/cms/api/v1";

const DOCUMENT_TYPES: [&str; 4] = ["AADHAAR", "PASSPORT", "VOTER_ID", "DRIVING_LICENSE"];

/// An answer before it meets a connection.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Value,
    /// When it was made, in Unix seconds, where a cache gives it.
    pub(super) made_at: Option<i64>,
}

/// How a service of the provider's make refuses whoever asks: in one envelope with all that it
/// refuses of a request's content.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RefusalOfUs {
    ApiKeyField,
    SignatureField,
    TimestampField,
    SignatureWords,
    TimestampWords,
    Maintenance,
    PaymentRequired,
    MethodNotAllowed,
    NotAcceptable,
    LengthRequired,
    UnsupportedMediaType,
    MisdirectedRequest,
    TooEarly,
    UpgradeRequired,
    HeadersTooLarge,
}

impl Reply {
    fn new(status: StatusCode, body: Value) -> Self {
        Self { status, body, made_at: None }
    }

    pub(super) fn refusal_of_us(refusal: RefusalOfUs) -> Self {
        use RefusalOfUs::*;
        let words = |status: u16, message: &str| {
            Self::error(StatusCode::from_u16(status).unwrap_or_default(), message, json!({}))
        };
        match refusal {
            ApiKeyField => Self::field_refused("api_key", "This key is not active."),
            SignatureField => Self::field_refused("X-SIGNATURE", "This header is not valid."),
            TimestampField => Self::field_refused("timestamp", "The request has expired."),
            SignatureWords => words(400, "Signature verification failed"),
            TimestampWords => words(400, "Request timestamp is too old"),
            Maintenance => words(400, "Service temporarily unavailable"),
            PaymentRequired => words(402, "Payment Required"),
            MethodNotAllowed => words(405, "Method \"PATCH\" not allowed."),
            NotAcceptable => words(406, "Could not satisfy the request Accept header."),
            LengthRequired => words(411, "Length Required"),
            UnsupportedMediaType => words(415, "Unsupported media type in request."),
            MisdirectedRequest => words(421, "Misdirected Request"),
            TooEarly => words(425, "Too Early"),
            UpgradeRequired => words(426, "Upgrade Required"),
            HeadersTooLarge => words(431, "Request Header Fields Too Large"),
        }
    }

    /// The same about another customer, where it is about one.
    pub(super) fn of_another_customer(mut self) -> Self {
        if let Some(id) = self.body.pointer_mut("/data/id") {
            *id = json!(Uuid::new_v4());
        }
        self
    }

    fn success(data: Value) -> Self {
        let body = json!({ "status": true, "message": "Success", "data": data });
        Self::new(StatusCode::OK, body)
    }

    fn error(status: StatusCode, message: &str, errors: Value) -> Self {
        let body = json!({ "status": false, "message": message, "errors": errors, "data": null });
        Self::new(status, body)
    }

    pub(super) fn refused(message: &str) -> Self {
        Self::error(StatusCode::BAD_REQUEST, message, json!({}))
    }

    fn fields_refused(errors: Value) -> Self {
        Self::error(StatusCode::BAD_REQUEST, "Bad Request", errors)
    }

    pub(super) fn field_refused(field: &str, text: &str) -> Self {
        Self::fields_refused(json!({ field: [text] }))
    }

    pub(super) fn customer_not_found() -> Self {
        Self::refused("Customer not found or access denied")
    }

    pub(super) fn body_too_large() -> Self {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self::error(status, "Payload Too Large", json!({}))
    }

    /// The documented 500: its flag is named `success`, its `errors` a text.
    pub(super) fn internal_error() -> Self {
        let body = json!({
            "success": false, "message": "Internal Server Error",
            "errors": "An unexpected error occurred.", "data": null,
        });
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, body)
    }

    /// Why it refuses, for the oracle: the message, and the names of the fields at fault.
    pub(super) fn reason(&self) -> String {
        let message = self.body["message"].as_str().unwrap_or("Not Found");
        let fields = self.body["errors"].as_object().into_iter();
        let fields: Vec<&str> = fields.flat_map(Map::keys).map(String::as_str).collect();
        match fields[..] {
            [] => message.to_owned(),
            _ => format!("{message}: {}", fields.join(", ")),
        }
    }
}

/// An address of the API, with what its path holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint<'a> {
    Update,
    Customer(&'a str),
    Configuration(&'a str),
    MockStatus,
}

impl<'a> Endpoint<'a> {
    /// # Errors
    /// The provider's 404 or 405, in the words of Django REST framework.
    pub(super) fn parse(method: &Method, path: &'a str) -> Result<Self, Reply> {
        let refusal = |status, detail| Reply::new(status, json!({ "detail": detail }));
        let path = path.strip_prefix(BASE_PATH).unwrap_or_default();
        let segments: Vec<&str> = path.split('/').collect();
        let (endpoint, allowed) = match segments[..] {
            ["", "kyc", "update-document-info"] => (Self::Update, Method::PATCH),
            ["", "kyc", "mock-kyc-status"] => (Self::MockStatus, Method::PATCH),
            ["", "kyc", "configuration", id] => (Self::Configuration(id), Method::GET),
            ["", "customer", id] => (Self::Customer(id), Method::GET),
            _ => return Err(refusal(StatusCode::NOT_FOUND, "Not found.")),
        };
        if method != allowed {
            let detail = "Method not allowed.";
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, detail));
        }
        Ok(endpoint)
    }
}

/// The three headers, as far as they are there and readable.
#[derive(Clone, Copy)]
pub(super) struct Credentials<'a> {
    pub(super) api_key: Option<&'a str>,
    pub(super) timestamp: Option<i64>,
    pub(super) signature: Option<&'a str>,
}

/// Checks the key, then the time, then the signature over the canonical form of `body`, and
/// returns the body as authenticated.
///
/// # Errors
/// The provider's refusal: 401 for the key, 400 for everything after it.
pub(super) fn authenticate<'a>(
    credentials: Credentials<'_>,
    body: Result<&'a Json, &Vec<Fault>>,
    settings: &Settings,
    now_unix: i64,
) -> Result<&'a Json, Reply> {
    let api_key = credentials.api_key.unwrap_or_default();
    if !is_equal_in_constant_time(api_key, &settings.api_key) {
        let errors = json!({ "api_key": ["Invalid API Key"] });
        let status = StatusCode::UNAUTHORIZED;
        return Err(Reply::error(status, "Unauthorized", errors));
    }
    let body = body.map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Reply::field_refused("detail", &format!("JSON parse error - {}", faults.join("; ")))
    })?;

    let refusal = || Reply::field_refused("signature", "Invalid Signature");
    let timestamp = credentials.timestamp.ok_or_else(refusal)?;
    if now_unix.abs_diff(timestamp) > settings.timestamp_window.as_secs() {
        return Err(refusal());
    }
    let canonical = body.to_canonical(settings.signing_profile);
    let signature = credentials.signature.ok_or_else(refusal)?;
    if Signer::new(api_key, &settings.api_secret).verify(timestamp, &canonical, signature) {
        Ok(body)
    } else {
        Err(refusal())
    }
}

fn is_equal_in_constant_time(given: &str, expected: &str) -> bool {
    let differences = given.bytes().zip(expected.bytes()).fold(0, |seen, (a, b)| seen | (a ^ b));
    given.len() == expected.len() && std::hint::black_box(differences) == 0
}

/// What a request asks for, once it is authenticated and its fields are valid.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Update(Update),
    ReadCustomer(Uuid),
    ReadConfiguration(Uuid),
    MockStatus { customer_id: Uuid, word: String },
}

/// A valid update request, as far as it has effects.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) customer_id: Uuid,
    pub(super) link: String,
    pub(super) document_type: String,
    pub(super) document_number: String,
}

impl Call {
    /// # Errors
    /// The provider's refusal, with every field at fault.
    pub(super) fn parse(endpoint: Endpoint<'_>, body: &Json) -> Result<Self, Reply> {
        let customer = |id| Uuid::parse_str(id).map_err(|_| Reply::customer_not_found());
        match endpoint {
            Endpoint::Customer(id) => Ok(Self::ReadCustomer(customer(id)?)),
            Endpoint::Configuration(id) => Ok(Self::ReadConfiguration(customer(id)?)),
            Endpoint::Update => Update::parse(body).map(Self::Update),
            Endpoint::MockStatus => {
                let mut fields = Fields::of(body)?;
                let customer_id = fields.parsed("customer_id", uuid, "Must be a valid UUID.");
                let word = fields.text("kyc_status");
                fields.finish()?;
                Ok(Self::MockStatus { customer_id, word })
            }
        }
    }
}

impl Update {
    fn parse(body: &Json) -> Result<Self, Reply> {
        const NO_UUID: &str = "Must be a valid UUID.";
        const NO_URL: &str = "Enter a valid URL.";
        const NO_CHOICE: &str = "\"{input}\" is not a valid choice.";
        let choice = |text: &str| DOCUMENT_TYPES.contains(&text).then(|| text.to_owned());

        let mut fields = Fields::of(body)?;
        fields.text("full_address");
        fields.parsed("document_back_image_url", web_link, NO_URL);
        let update = Self {
            customer_id: fields.parsed("customer_id", uuid, NO_UUID),
            link: fields.parsed("document_front_image_url", web_link, NO_URL),
            document_type: fields.parsed("document_type", choice, NO_CHOICE),
            document_number: fields.nested("document_details", |details| details.text("document_number")),
        };
        fields.finish().map(|()| update)
    }
}

/// The text of a top-level field, before and whether or not anything is valid.
pub(super) fn text_field<'a>(body: &'a Json, name: &str) -> Option<&'a str> {
    let Json::Object(fields) = body else {
        return None;
    };
    match fields.get(name)? {
        Json::String(text) => Some(text),
        _ => None,
    }
}

/// An object's fields, read as Django REST framework's serializers do: every fault is
/// gathered, those of a nested object under its name. What is refused reads as empty.
struct Fields<'a> {
    object: &'a BTreeMap<String, Json>,
    errors: Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(body: &'a Json) -> Result<Self, Reply> {
        let errors = Map::new();
        match body {
            Json::Object(object) => Ok(Self { object, errors }),
            _ => Err(Reply::field_refused("non_field_errors", "Invalid data.")),
        }
    }

    fn finish(self) -> Result<(), Reply> {
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(Reply::fields_refused(self.errors.into()))
    }

    fn refuse(&mut self, name: &str, text: &str) {
        self.errors.insert(name.to_owned(), json!([text]));
    }

    fn present(&mut self, name: &str) -> Option<&'a Json> {
        match self.object.get(name) {
            None => self.refuse(name, "This field is required."),
            Some(Json::Null) => self.refuse(name, "This field may not be null."),
            present => return present,
        }
        None
    }

    fn text(&mut self, name: &str) -> String {
        match self.present(name) {
            // Python's str() of a whole number is accepted where a text is asked for.
            Some(Json::Integer(digits)) => return digits.clone(),
            Some(Json::String(text)) if !text.trim().is_empty() => return text.trim().to_owned(),
            Some(Json::String(_)) => self.refuse(name, "This field may not be blank."),
            Some(_) => self.refuse(name, "Not a valid string."),
            None => {}
        }
        String::new()
    }

    fn parsed<T: Default>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        complaint: &str,
    ) -> T {
        let text = self.text(name);
        let parsed = parse(&text);
        if parsed.is_none() && !text.is_empty() {
            self.refuse(name, &complaint.replace("{input}", &text));
        }
        parsed.unwrap_or_default()
    }

    fn nested(&mut self, name: &str, read: impl FnOnce(&mut Self) -> String) -> String {
        let Some(json) = self.present(name) else {
            return String::new();
        };
        let mut text = String::new();
        let read = Self::of(json).and_then(|mut inner| {
            text = read(&mut inner);
            inner.finish()
        });
        if let Err(refusal) = read {
            self.errors.insert(name.to_owned(), refusal.body["errors"].clone());
        }
        text
    }
}

fn uuid(text: &str) -> Option<Uuid> {
    Uuid::parse_str(text).ok()
}

fn web_link(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then(|| text.to_owned())
}

/// The 200 for an applied update.
pub(super) fn update_accepted(update: &Update, settings: &Settings) -> Reply {
    Reply::success(json!({ "id": update.customer_id, "status": settings.update_answers }))
}

pub(super) fn configuration() -> Reply {
    Reply::success(json!({
        "supported_document_types": DOCUMENT_TYPES,
        "additional_info_required": false,
    }))
}

/// The 200 for a customer, with made-up personal data by which a leak can be recognised.
pub(super) fn customer_found(id: Uuid, customer: &Customer) -> Reply {
    Reply::success(json!({
        "id": id,
        "status": customer.status,
        "failure_reason": customer.failure_reason(),
        "document_type": customer.document_type,
        "full_name": "Canary Sandboxwala",
        "email": "canary.sandboxwala@example.invalid",
        "phone": "+919999900000",
        "country": "IND",
        "client_reference_id": "canary-reference-7c1f",
        "type": "INDIVIDUAL",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUSTOMER: &str = "1cf2b6a0-6a3e-11ef-9a4d-0242ac120002";

    fn documented_example() -> Value {
        json!({
            "customer_id": CUSTOMER,
            "full_address": "12 Residency Road, Bengaluru",
            "document_type": "AADHAAR",
            "document_front_image_url": "https://docs.example/front.pdf",
            "document_back_image_url": "https://docs.example/back.pdf",
            "document_details": { "document_number": "123456123456", "additional_data": {} },
        })
    }

    fn json_of(value: &Value) -> Json {
        Json::parse(value.to_string().as_bytes()).unwrap()
    }

    #[track_caller]
    fn check(pointer: &str, value: Option<Value>, expected: Value) {
        let mut body = documented_example();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert(field.to_owned(), value),
            None => parent.remove(field),
        };
        let refusal = Call::parse(Endpoint::Update, &json_of(&body)).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        assert_eq!(refusal.body["message"], "Bad Request");
        assert_eq!(refusal.body["errors"], expected);
    }

    #[test]
    fn a_field_is_refused_by_name_and_in_the_words_of_the_framework() {
        let blank = ["This field may not be blank."];
        check("/customer_id", None, json!({ "customer_id": ["This field is required."] }));
        check("/customer_id", Some(json!("7")), json!({ "customer_id": ["Must be a valid UUID."] }));
        check("/full_address", Some(json!("  ")), json!({ "full_address": blank }));
        check("/full_address", Some(json!([])), json!({ "full_address": ["Not a valid string."] }));
        check(
            "/document_type",
            Some(json!("LIBRARY_CARD")),
            json!({ "document_type": ["\"LIBRARY_CARD\" is not a valid choice."] }),
        );
        check(
            "/document_front_image_url",
            Some(json!("ftp:front")),
            json!({ "document_front_image_url": ["Enter a valid URL."] }),
        );
        check(
            "/document_back_image_url",
            Some(json!(null)),
            json!({ "document_back_image_url": ["This field may not be null."] }),
        );
        check(
            "/document_details/document_number",
            Some(json!("")),
            json!({ "document_details": { "document_number": blank } }),
        );
    }

    #[test]
    fn all_fields_at_fault_are_named_at_once() {
        let refusal = Call::parse(Endpoint::Update, &json_of(&json!({}))).unwrap_err();
        assert_eq!(refusal.body["errors"].as_object().unwrap().len(), 6);
        assert_eq!(
            refusal.reason(),
            "Bad Request: customer_id, document_back_image_url, document_details, \
             document_front_image_url, document_type, full_address"
        );
    }

    #[test]
    fn the_documented_example_is_valid() {
        let call = Call::parse(Endpoint::Update, &json_of(&documented_example())).unwrap();
        let Call::Update(update) = call else { panic!("not an update: {call:?}") };
        assert_eq!(update.customer_id.to_string(), CUSTOMER);
        assert_eq!(update.document_number, "123456123456");
    }

    #[test]
    fn only_the_key_answers_401_and_a_stale_time_reads_as_a_bad_signature() {
        let (settings, body, now) = (Settings::default(), json_of(&json!({})), 1_800_000_000);
        let signer = Signer::new(&settings.api_key, &settings.api_secret);
        let signed_at = |timestamp| signer.sign(timestamp, "{}");
        let check = |key, timestamp, signature: &str, expected: Result<(), StatusCode>| {
            let credentials = Credentials { api_key: key, timestamp, signature: Some(signature) };
            let seen = authenticate(credentials, Ok(&body), &settings, now);
            assert_eq!(seen.map(|_| ()).map_err(|refusal| refusal.status), expected);
        };
        let key = Some("sandbox-key");
        let (unauthorized, bad) = (Err(StatusCode::UNAUTHORIZED), Err(StatusCode::BAD_REQUEST));
        check(key, Some(now), &signed_at(now), Ok(()));
        check(key, Some(now - 300), &signed_at(now - 300), Ok(()));
        check(key, Some(now - 301), &signed_at(now - 301), bad);
        check(key, Some(now + 301), &signed_at(now + 301), bad);
        check(key, Some(now), &signed_at(now - 1), bad);
        check(key, None, &signed_at(now), bad);
        check(key, Some(now), "", bad);
        check(None, Some(now), &signed_at(now), unauthorized);
        check(Some("other-key"), Some(now), &signed_at(now), unauthorized);
    }

    #[test]
    fn addresses_are_the_documented_ones_and_no_others() {
        let patch = Endpoint::parse(&Method::PATCH, "/cms/api/v1/kyc/update-document-info");
        assert_eq!(patch.unwrap(), Endpoint::Update);
        let customer = Endpoint::parse(&Method::GET, "/cms/api/v1/customer/x");
        assert_eq!(customer.unwrap(), Endpoint::Customer("x"));
        let post = Endpoint::parse(&Method::POST, "/cms/api/v1/kyc/update-document-info");
        assert_eq!(post.unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED);
        for path in ["/", "/cms/api/v1", "/cms/api/v2/customer/x", "/cms/api/v1/customer/x/y"] {
            let seen = Endpoint::parse(&Method::GET, path);
            assert_eq!(seen.unwrap_err().status, StatusCode::NOT_FOUND, "{path}");
        }
    }
}
