//! Presigned links: which parameters of a query sign it or say until when it holds, as the
//! object stores and networks that sign links document. Only these change when a link to the
//! same document is signed anew.

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

fn name(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

#[cfg(test)]
mod tests {
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
