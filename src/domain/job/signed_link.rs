//! Presigned links: which parameters of a query sign it or say until when it holds, as the
//! object stores and networks that sign links document. Only these change when a link to the
//! same document is signed anew.

use std::time::Duration;

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};
use url::form_urlencoded;

/// These begin the names of parameters that sign: AWS (and MinIO), Google Cloud.
const SIGNING_PREFIXES: [&str; 2] = ["X-Amz-", "X-Goog-"];

/// These sign wherever they are: AWS version 2 and CloudFront, Google Cloud, Alibaba, Tencent.
const SIGNING: [&str; 18] = [
    "AWSAccessKeyId",
    "GoogleAccessId",
    "OSSAccessKeyId",
    "Key-Pair-Id",
    "x-oss-signature-version",
    "x-oss-signature",
    "x-oss-credential",
    "x-oss-date",
    "x-oss-expires",
    "x-oss-additional-headers",
    "x-oss-security-token",
    "q-sign-algorithm",
    "q-ak",
    "q-sign-time",
    "q-key-time",
    "q-header-list",
    "q-url-param-list",
    "q-signature",
];

/// These sign beside a `Signature`; elsewhere they may name a document, as any word may.
const BESIDE_SIGNATURE: [&str; 6] =
    ["Signature", "Expires", "Policy", "Hash-Algorithm", "AccessKeyId", "security-token"];

/// These sign beside a `sig`: Azure's shared access signatures.
const BESIDE_SIG: [&str; 25] = [
    "sig", "sv", "ss", "srt", "sp", "se", "st", "spr", "sip", "si", "sr", "sdd", "ses", "skoid", "sktid",
    "skt", "ske", "sks", "skv", "saoid", "suoid", "scid", "sduoid", "skdutid", "skn",
];

/// Takes the parameters that sign a link out of its query, and its fragment, which no server is
/// sent. What stays keeps its order and its spelling.
pub(super) fn cut_signature(link: &mut String) {
    link.truncate(link.find('#').unwrap_or(link.len()));
    let Some((path, query)) = link.split_once('?') else { return };
    let has = |wanted: &str| query.split('&').any(|pair| name(pair).eq_ignore_ascii_case(wanted));
    let (has_signature, has_sig) = (has("Signature"), has("sig"));
    let mut kept = path.to_owned();
    for pair in query.split('&') {
        let name = name(pair);
        let is_in = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        let signs = SIGNING_PREFIXES
            .iter()
            .any(|prefix| name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix)))
            || is_in(&SIGNING)
            || has_signature && is_in(&BESIDE_SIGNATURE)
            || has_sig && is_in(&BESIDE_SIG);
        if !signs && !pair.is_empty() {
            kept.push(if kept.len() == path.len() { '?' } else { '&' });
            kept.push_str(pair);
        }
    }
    *link = kept;
}

/// These say when a link was signed, and for how many seconds it holds: AWS (and MinIO), Google Cloud,
/// Alibaba.
const SIGNED_AND_LASTS: [(&str, &str); 3] =
    [("X-Amz-Date", "X-Amz-Expires"), ("X-Goog-Date", "X-Goog-Expires"), ("x-oss-date", "x-oss-expires")];

/// As those write times.
const BASIC: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// Azure's, beside RFC 3339.
const TO_THE_MINUTE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]Z");
const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");

/// AWS, Google and Alibaba allow seven days at most: a longer time is of another unit, and says nothing.
const LASTS_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Nor does an end outside these years.
const YEARS: std::ops::RangeInclusive<i32> = 2000..=2199;

/// Until when a link holds, as its query says; the earliest where it says more than one. What cannot be
/// read, or cannot be meant, says nothing.
pub(super) fn ends_at(link: &str) -> Option<OffsetDateTime> {
    let (_, query) = link.split('#').next()?.split_once('?')?;
    let parameters: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let value = |wanted: &str| {
        parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| &**value)
    };
    let signed = SIGNED_AND_LASTS.iter().map(|(signed, lasts)| {
        let signed_at = PrimitiveDateTime::parse(value(signed)?, BASIC).ok()?.assume_utc();
        let lasts = Duration::from_secs(value(lasts)?.parse().ok()?);
        (lasts <= LASTS_MAX).then(|| signed_at.checked_add(lasts.try_into().ok()?))?
    });
    let told = [
        value("Signature").and_then(|_| epoch(value("Expires")?)),
        value("sig").and_then(|_| azure(value("se")?)),
        // From and until.
        value("q-signature").and_then(|_| epoch(value("q-sign-time")?.split_once(';')?.1)),
    ];
    signed.chain(told).flatten().filter(|at| YEARS.contains(&at.year())).min()
}

fn epoch(seconds: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds.parse().ok()?).ok()
}

fn azure(text: &str) -> Option<OffsetDateTime> {
    let instant = OffsetDateTime::parse(text, &Rfc3339).ok();
    let minute = || Some(PrimitiveDateTime::parse(text, TO_THE_MINUTE).ok()?.assume_utc());
    instant.or_else(minute).or_else(|| Some(Date::parse(text, DATE).ok()?.midnight().assume_utc()))
}

fn name(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[track_caller]
    fn check(query: &str, expected: &str) {
        let mut link = format!("https://h/a.jpg{query}");
        cut_signature(&mut link);
        assert_eq!(link, format!("https://h/a.jpg{expected}"), "{query}");
    }

    #[test]
    fn what_signs_a_link_is_left_out() {
        check("", "");
        check("?", "");
        check("#page=1", "");
        check("#b?c", "");
        let aws = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F2&X-Amz-Date=1&X-Amz-Expires=900\
            &X-Amz-Security-Token=x&X-Amz-SignedHeaders=host&X-Amz-Signature=ff";
        check(&format!("?{aws}"), "");
        check(&format!("?versionId=7&{aws}"), "?versionId=7");
        check("?AWSAccessKeyId=A&Signature=b%3D&Expires=1", "");
        check("?Expires=1&Signature=b&Key-Pair-Id=K", "");
        check("?Policy=p&Signature=b&Key-Pair-Id=K&Hash-Algorithm=SHA256", "");
        check("?X-Goog-Algorithm=G&x-goog-signature=ff&generation=5", "?generation=5");
        check("?GoogleAccessId=a@b&Expires=1&Signature=b", "");
        check("?sv=2024-11-04&st=a&se=b&sr=b&sp=r&spr=https&skoid=1&sktid=2&sig=c%3D", "");
        check("?OSSAccessKeyId=A&Expires=1&Signature=b&x-oss-process=style/a", "?x-oss-process=style/a");
        check("?q-sign-algorithm=sha1&q-ak=A&q-sign-time=1;2&q-key-time=1;2&q-signature=f", "");
    }

    #[test]
    fn a_signed_link_says_until_when_it_holds() {
        let check = |query: &str, expected: Option<OffsetDateTime>| {
            assert_eq!(ends_at(&format!("https://h/a.jpg?{query}")), expected, "{query}");
        };
        let noon = Some(datetime!(2026-11-24 12:00 UTC));
        let quarter_past = Some(datetime!(2026-11-24 12:15 UTC));
        // Each as its vendor's documentation has it.
        check("X-Amz-Date=20261124T120000Z&X-Amz-Expires=900&X-Amz-Signature=f", quarter_past);
        check("x-amz-expires=900&x-amz-date=20261124T120000Z", quarter_past);
        check("X-Goog-Date=20261124T120000Z&X-Goog-Expires=900", quarter_past);
        check("x-oss-date=20261124T120000Z&x-oss-expires=900", quarter_past);
        check("AWSAccessKeyId=A&Signature=b%3D&Expires=1795521600", noon);
        check("Expires=1795521600&Signature=b&Key-Pair-Id=K", noon);
        check("sv=2024-11-04&se=2026-11-24T12%3A00%3A00Z&sr=b&sig=c%3D", noon);
        check("se=2026-11-24T12:00Z&sig=c", noon);
        check("se=2026-11-24&sig=c", Some(datetime!(2026-11-24 0:00 UTC)));
        check("q-sign-time=1795000000;1795521600&q-signature=f", noon);
        check("X-Amz-Date=20261124T120000Z&X-Amz-Expires=900&se=2026-11-24T12:00Z&sig=c", noon);
        for silent in [
            "",
            "Expires=1795521600",
            "se=2026-11-24T12:00Z",
            "Expires=tomorrow&Signature=b",
            "Expires=1795521600000&Signature=b",
            "Expires=-1&Signature=b",
            "Expires=12&Signature=b",
            "Expires=99999999999999999999&Signature=b",
            "X-Amz-Date=20261124T120000Z",
            "X-Amz-Expires=900",
            "X-Amz-Date=20261124T120000Z&X-Amz-Expires=604801",
            "X-Amz-Date=20261124T120000Z&X-Amz-Expires=-900",
            "X-Amz-Date=20261324T120000Z&X-Amz-Expires=900",
            "X-Amz-Date=2026-11-24T12:00:00Z&X-Amz-Expires=900",
            "X-Amz-Date=99991231T235959Z&X-Amz-Expires=604800",
            "se=soon&sig=c",
        ] {
            check(silent, None);
        }
        let in_fragment = "https://h/a.jpg#?Expires=1795521600&Signature=b";
        assert_eq!(ends_at(in_fragment), None);
    }

    #[test]
    fn what_names_a_document_stays_as_it_is_written() {
        for query in [
            "?versionId=1",
            "?id=2",
            "?b=2&a=1",
            "?a=1&a=2",
            "?ID=2",
            "?id=%32",
            "?se=1&sp=2",
            "?Expires=1&Policy=2",
            "?token=t",
            "?X-Amzn=1",
            "?file=a.jpg?b",
        ] {
            check(query, query);
        }
    }
}
