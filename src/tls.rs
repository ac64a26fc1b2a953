//! What a failed TLS handshake says of the certificates, in words that tell what to do.
//! The three edges trust the platform's store and what their own settings add to it.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// What is wrong with the certificates, where that is why `error` came about. `ca` is how
/// a certificate authority of one's own is named for that edge.
pub fn certificate_fault(error: &(dyn Error + 'static), ca: &str) -> Option<String> {
    let fault = match rustls_error(error)? {
        rustls::Error::InvalidCertificate(fault) => fault,
        rustls::Error::AlertReceived(alert) => return Some(refused_by_server(*alert)),
        rustls::Error::InvalidMessage(_) => {
            return Some("the server does not speak TLS on this port; is it the plain one?".to_owned());
        }
        other => return Some(format!("TLS failed: {other}")),
    };
    Some(match fault {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the server's certificate is for another name ({fault}); connect by a name it holds")
        }
        CertificateError::UnknownIssuer => format!(
            "the server's certificate is signed by an authority that this machine does not trust; name its certificate in {ca}"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired, or this machine's clock is wrong".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; is this machine's clock right?".to_owned()
        }
        other => format!("the server's certificate is not valid: {other}"),
    })
}

fn refused_by_server(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
            "the server wants a client certificate".to_owned()
        }
        AlertDescription::UnknownCA | AlertDescription::BadCertificate => {
            "the server does not trust our client certificate".to_owned()
        }
        other => format!("the server ended the TLS handshake ({other:?})"),
    }
}

/// Finds rustls' own error: libraries hide it in `io::Error`s, whose `source` skips it.
fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        let hidden = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = hidden.and_then(|hidden| rustls_error(hidden)) {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fault_is_found_however_deep_it_hides() {
        let name = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let hidden = io::Error::other(io::Error::other(name));
        let error = anyhow::Error::new(hidden).context("cannot connect");
        let said = certificate_fault(error.as_ref(), "AMQP_CA_FILE").expect("a fault of certificates");
        assert!(said.contains("another name"), "{said}");
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let said = certificate_fault(&unknown, "AMQP_CA_FILE").expect("a fault of certificates");
        assert!(said.contains("AMQP_CA_FILE"), "{said}");
        assert_eq!(certificate_fault(&io::Error::from(io::ErrorKind::ConnectionReset), ""), None);
    }
}
