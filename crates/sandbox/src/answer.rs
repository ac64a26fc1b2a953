//! The answer's side of a request: what the provider says, or what a rule has it say, as bytes
//! on a connection that may be cut. Knows nothing of why.

use std::{
    convert::Infallible,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{AGE, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::Value;

use super::{
    Sandbox,
    flow::pause,
    provider::Reply,
    rule::Answer,
    wire::{Ending, Shears},
};

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.body)).into_response()
    }
}

/// The answer as it goes to the wire, or none where the client gets no head at all.
pub(super) fn render(sandbox: &Sandbox, shears: &Shears, reply: Reply, answer: &Answer) -> Option<Response> {
    let streamed = |body: Bytes, piece, every| until_stopped(sandbox, drip(body, piece, every));
    let mut response = match answer {
        Answer::Normal {} => reply.into_response(),
        Answer::RefuseUs { with } => Reply::refusal_of_us(*with).into_response(),
        Answer::OtherCustomer {} => reply.of_another_customer().into_response(),
        Answer::Cached { with_age, .. } => {
            let made_at = reply.made_at;
            let mut response = reply.into_response();
            if let Some(made_at) = made_at {
                let age = sandbox.state.lock().unix_seconds() - made_at;
                response.headers_mut().extend(date_header(made_at));
                response.headers_mut().extend(with_age.then(|| (AGE, HeaderValue::from(age))));
            }
            response
        }
        Answer::Respond { status, headers, body } => {
            let (content_type, body) = content(body.as_ref());
            let length = HeaderValue::from(body.len());
            // As a stream, so that a rule's own content-length may lie about it.
            let body = streamed(body, usize::MAX, Duration::ZERO);
            let own = [(CONTENT_TYPE, content_type), (CONTENT_LENGTH, length)];
            let mut response = (own, body).into_response();
            *response.status_mut() = StatusCode::from_u16(*status).unwrap_or_default();
            // Checked when the rule was posted.
            response.headers_mut().extend(HeaderMap::try_from(headers).unwrap_or_default());
            response
        }
        Answer::ResetAfterBytes { bytes } => {
            shears.cut_after(*bytes, Ending::Reset);
            // Told to close, the server ends even an answer shorter than the cut.
            ([(CONNECTION, "close")], reply).into_response()
        }
        Answer::Reset {} => {
            shears.cut_after(0, Ending::Reset);
            return None;
        }
        Answer::Close {} => {
            shears.cut_after(0, Ending::Close);
            return None;
        }
        Answer::Hang {} => return None,
        Answer::Slow { byte_every_ms } => {
            let body = Bytes::from(reply.body.to_string());
            let own = [(CONTENT_TYPE, JSON), (CONTENT_LENGTH, body.len().into())];
            let body = streamed(body, 1, Duration::from_millis(*byte_every_ms));
            (reply.status, own, body).into_response()
        }
        Answer::Huge { bytes } => {
            let body = until_stopped(sandbox, flood(*bytes));
            ([(CONTENT_TYPE, JSON)], body).into_response()
        }
        Answer::Garbage {} => ([(CONTENT_TYPE, JSON)], GARBAGE).into_response(),
    };
    let state = sandbox.state.lock();
    if state.settings.close_connections {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if state.settings.clock_ahead_s != 0
        && let Some((name, date)) = date_header(state.unix_seconds())
    {
        response.headers_mut().entry(name).or_insert(date);
    }
    Some(response)
}

fn date_header(unix_seconds: i64) -> Option<(HeaderName, HeaderValue)> {
    let at = UNIX_EPOCH + Duration::from_secs(unix_seconds.unsigned_abs());
    HeaderValue::try_from(httpdate::fmt_http_date(at)).ok().map(|date| (DATE, date))
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const GARBAGE: &[u8] = b"{\"status\": tr\xff\xfe\0";

fn content(body: Option<&Value>) -> (HeaderValue, Bytes) {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    match body {
        None => (TEXT, Bytes::new()),
        Some(Value::String(text)) => (TEXT, text.clone().into()),
        Some(json) => (JSON, json.to_string().into()),
    }
}

/// Pieces of a body, each after a pause.
fn drip(body: Bytes, piece: usize, every: Duration) -> impl Stream<Item = Bytes> {
    stream::unfold(body, move |mut rest| async move {
        if rest.is_empty() {
            // The server gets to flush before it learns that a content-length was a lie.
            tokio::task::yield_now().await;
            return None;
        }
        pause(every).await;
        Some((rest.split_to(piece.min(rest.len())), rest))
    })
}

/// A body without end or `content-length`, of which no more than a chunk is ever held.
fn flood(bytes: u64) -> impl Stream<Item = Bytes> {
    const OPENING: &[u8] = br#"{"status": true, "message": ""#;
    static CHUNK: [u8; 64 * 1024] = [b'a'; 64 * 1024];
    let mut left = bytes;
    let chunks = std::iter::once(OPENING).chain(std::iter::repeat(&CHUNK[..]));
    stream::iter(chunks.map_while(move |chunk| {
        let length = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= length as u64;
        (length > 0).then(|| Bytes::from_static(&chunk[..length]))
    }))
}

/// A body that the stopping of the sandbox cuts off.
fn until_stopped(sandbox: &Sandbox, body: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    let stop = sandbox.stop.clone().cancelled_owned();
    Body::from_stream(body.map(Ok::<_, Infallible>).take_until(stop))
}
