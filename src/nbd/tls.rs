//! TLS with X.509 certificates, as files of the names that libnbd, nbdkit and QEMU use.
//!
//! These files are not a store's: an administrator names their directory, so no gate stands before them.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use super::stream::Plain;
use super::uri::{Endpoint, TlsParameters, Uri};
use crate::base::{Error, ErrorKind, Result};

const CA_CERTIFICATE: &str = "ca-cert.pem";
const CA_REVOKED: &str = "ca-crl.pem";
const CLIENT_CERTIFICATE: &str = "client-cert.pem";
const CLIENT_KEY: &str = "client-key.pem";

/// All that is needed to encrypt a connection.
#[derive(Clone)]
pub(super) struct Security {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Security {
    /// What the URI asks for, or `None` where it asks for a plain connection.
    pub(super) fn of(uri: &Uri, fallback: Option<&Path>) -> Result<Option<Self>> {
        uri.tls().map(|tls| Self::new(uri, tls, fallback)).transpose()
    }

    fn new(uri: &Uri, tls: &TlsParameters, fallback: Option<&Path>) -> Result<Self> {
        let directory = tls.certificates.as_deref().or(fallback);
        let name = match (&tls.hostname, uri.endpoint()) {
            (Some(name), _) | (None, Endpoint::Tcp { host: name, .. }) => Some(name.as_str()),
            (None, Endpoint::Unix(_)) => None,
        };
        let expected = name
            .map(|name| {
                ServerName::try_from(name.to_owned()).map_err(|e| {
                    Error::new(ErrorKind::Usage, format!("a certificate cannot be for the name '{name}'"))
                        .with_source(e)
                })
            })
            .transpose()?;
        let provider = Arc::new(ring::default_provider());
        let checked = match (tls.verify_peer, directory) {
            (false, _) => Checked::Nothing,
            (true, Some(directory)) => {
                let chain = verifier(directory, &provider)?;
                if expected.is_some() { Checked::ChainAndName(chain) } else { Checked::Chain(chain) }
            }
            (true, None) => {
                return Err(Error::new(ErrorKind::Usage, "whose certificate is to be trusted?").with_hint(format!(
                    "name the directory that holds {CA_CERTIFICATE} with tls-certificates=DIR in the URI"
                )));
            }
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::new(ErrorKind::Unsupported, "cannot set up TLS").with_source(e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { checked, provider }));
        let mut config = match directory.map(client_identity).transpose()?.flatten() {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|e| {
                Error::new(ErrorKind::Usage, format!("{CLIENT_CERTIFICATE} does not go with {CLIENT_KEY}"))
                    .with_source(e)
            })?,
            None => config.with_no_client_auth(),
        };
        config.enable_sni = expected.is_some();
        // Where no name is known none is sent and none is compared; this one only fills the place.
        let name = expected.unwrap_or_else(|| ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Encrypts a stream on which the server has just agreed to it.
    pub(super) async fn encrypt(&self, stream: Plain) -> Result<TlsStream<Plain>> {
        self.connector.connect(self.name.clone(), stream).await.map_err(|e| {
            // Certificates that do not match will not match the next time either.
            let kind = match e.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
                Some(_) => ErrorKind::Refused,
                None => ErrorKind::Disconnected,
            };
            Error::new(kind, "the TLS handshake failed").with_source(e)
        })
    }
}

fn unreadable(directory: &Path, file: &str, e: pem::Error) -> Error {
    let message = format!("cannot read certificates from {}", directory.join(file).display());
    match e {
        pem::Error::Io(e) => Error::io(message, e),
        other => Error::new(ErrorKind::Usage, message).with_source(other),
    }
}

/// All objects of one kind in a PEM file.
fn read_all<T: PemObject>(directory: &Path, file: &str) -> Result<Vec<T>> {
    T::pem_file_iter(directory.join(file)).and_then(Iterator::collect).map_err(|e| unreadable(directory, file, e))
}

fn verifier(directory: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    let certificates = read_all::<CertificateDer<'static>>(directory, CA_CERTIFICATE)?;
    for certificate in certificates {
        roots.add(certificate).map_err(|e| {
            let file = directory.join(CA_CERTIFICATE);
            Error::new(ErrorKind::Usage, format!("{} is no usable certificate", file.display())).with_source(e)
        })?;
    }
    let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if directory.join(CA_REVOKED).exists() {
        let revoked = read_all::<CertificateRevocationListDer<'static>>(directory, CA_REVOKED)?;
        builder = builder.with_crls(revoked).allow_unknown_revocation_status();
    }
    builder.build().map_err(|e| {
        let message = format!("{CA_CERTIFICATE} or {CA_REVOKED} in {} cannot be used", directory.display());
        Error::new(ErrorKind::Usage, message).with_source(e)
    })
}

/// The client's own certificate and key, if the directory has them.
fn client_identity(directory: &Path) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
    if !directory.join(CLIENT_CERTIFICATE).exists() {
        return Ok(None);
    }
    let chain = read_all(directory, CLIENT_CERTIFICATE)?;
    let key = PrivateKeyDer::from_pem_file(directory.join(CLIENT_KEY));
    Ok(Some((chain, key.map_err(|e| unreadable(directory, CLIENT_KEY, e))?)))
}

/// How far a server's certificate is checked.
#[derive(Debug)]
enum Checked {
    /// It is for the name that was connected to, and a trusted authority signed it.
    ChainAndName(Arc<WebPkiServerVerifier>),
    /// A trusted authority signed it: on a Unix domain socket without `tls-hostname` there is no name to compare.
    Chain(Arc<WebPkiServerVerifier>),
    /// `tls-verify-peer=0`.
    Nothing,
}

#[derive(Debug)]
struct Verifier {
    checked: Checked,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verify =
            |chain: &WebPkiServerVerifier| chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        match &self.checked {
            Checked::ChainAndName(chain) => verify(chain),
            Checked::Chain(chain) => match verify(chain) {
                // The name is compared last, so by then the chain is good.
                Err(TlsError::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                other => other,
            },
            Checked::Nothing => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
