//! TLS in front of a server that has none, with a certificate of an authority made for the
//! occasion. For clients that must not speak plain HTTP over a network.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

/// An authority that nobody trusts who is not told to.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub struct Issued {
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    /// A new one, with a key of its own.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities of one name are taken for one.
        let name = format!("authority {}", uuid::Uuid::new_v4());
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a host's name or address.
    ///
    /// # Errors
    /// When it is neither.
    pub fn issue(&self, name: &str) -> anyhow::Result<Issued> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        Ok(Issued { certificate: params.signed_by(&key, &self.0)?, key })
    }
}

impl Issued {
    /// The certificate, in PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Its key, in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

/// Speaks TLS to clients and plainly to the server behind it. Dropping it ends it.
pub struct Front {
    address: SocketAddr,
    acceptor: JoinHandle<()>,
}

impl Front {
    /// Takes connections from `listener` on to `target`.
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub fn start(listener: TcpListener, target: SocketAddr, issued: &Issued) -> anyhow::Result<Self> {
        let key = PrivateKeyDer::try_from(issued.key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![issued.certificate.der().clone()], key)?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let address = listener.local_addr()?;
        Ok(Self { address, acceptor: tokio::spawn(accept(listener, target, tls)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, tls: TlsAcceptor) {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                debug!(%error, "a connection was not accepted");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let tls = tls.clone();
        tokio::spawn(async move {
            let passed = async {
                let mut client = tls.accept(client).await?;
                let mut server = TcpStream::connect(target).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            };
            if let Err(error) = passed.await {
                debug!(%error, "a TLS connection ended");
            }
        });
    }
}
