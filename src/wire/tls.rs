//! Encryption, and who is who: TLS 1.3, by certificates from files that may change while they are in use.
//!
//! ```text
//!              who connects                                who answers
//!  client  ──▶ trusts: a member's certificate         ◀── shows: its own, which is a member's
//!              shows: its own, if it has one           ──▶ trusts: any certificate of the authority, or none
//!  member  ──▶ the same; for Raft and snapshots        ──▶ trusts: a member's certificate
//!
//!  a member's certificate:  signed by the authority, and for one of the names of members
//! ```
//!
//! Members are known by a *name* that their certificates have in common, and not by their hosts: addresses come and go
//! with the members, and one that lags does not know yet at which address the others are. A client knows by it that it
//! talks to a member, and to none of the other processes that the authority has given certificates to.
//!
//! Invariants
//! - files are read again at most once a second, when a connection is opened, and what makes no sense changes nothing:
//!   the last that did stays, and a warning says so. What a start would refuse makes no sense either;
//! - no connection waits for a file for long: a thread of its own reads it, and until it has the last one counts;
//! - connections that are open stay as they are;
//! - no session is resumed: each connection looks at certificates as they are now.

use super::security::Trust;
use super::socket::{Socket, Stream};
use crate::error::{Error, Reason, Result};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// The name of members if no other was said.
const MEMBER_NAME: &str = "member.quorate.internal";
/// What is spoken inside, so that no other protocol's server takes a connection for its own.
const PROTOCOL: &[u8] = b"quorate";
/// How long files are not looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a connection waits for that.
const LOOK_PATIENCE: Duration = Duration::from_millis(200);

/// Certificates and keys, by the PEM files that they are in.
///
/// Members of a group have certificates of one authority, each for the [name of members](Self::member_names) beside
/// whatever else it is for, and with both usages, of a server and of a client, if it limits them. That name is in no
/// certificate of anybody else: it is how a member knows that Raft traffic comes from another, and how a client knows
/// that a member answers. Clients have certificates of the same authority.
///
/// Files may be replaced while they are in use, one after the other: connections that are opened a second later go by
/// the new ones, as soon as they make sense together: the key is that of the certificate, and the certificate is of the
/// authority. To change the authority, first put the new one beside the old one into its file, everywhere; then give out
/// new certificates; then take the old one away.
///
/// A member signs each handshake on the threads that it has for everything: keys of elliptic curves (ECDSA, Ed25519) cost
/// it a tenth of a millisecond and less, RSA keys milliseconds.
///
/// Only TLS 1.3 is spoken. Needs the feature `tls`.
///
/// ```no_run
/// # async fn f() -> quorate::Result<()> {
/// use quorate::{Client, Node, Tls};
///
/// let tls = Tls::new("tls/ca.pem").identity("tls/member.pem", "tls/member.key");
/// let node = Node::builder("data").listen("10.0.0.1:7401").tls(tls).solo().await?;
///
/// let tls = Tls::new("tls/ca.pem").identity("tls/client.pem", "tls/client.key");
/// let client = Client::builder().endpoints(["10.0.0.1:7401"]).tls(tls).connect().await?;
/// # let _ = (node, client); Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Tls {
    authority: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
    member_names: Vec<String>,
    is_open: bool,
    /// Its certificate has to be that of a member.
    is_of_member: bool,
    look_every: Duration,
    #[cfg(test)]
    is_unchecked: bool,
    /// Shared by clones, so that what one has read the others need not.
    loaded: Arc<Mutex<Option<Loaded>>>,
}

/// What the files said when they were looked at last.
#[derive(Debug)]
struct Loaded {
    looked: Instant,
    files: Files,
    keys: Keys,
}

/// The contents of the files.
#[derive(PartialEq, Eq)]
struct Files {
    authority: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // There is a private key among them.
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

/// A certificate with those between it and the authority, and its key.
type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The rules that a connection is opened by.
#[derive(Clone, Debug)]
struct Keys {
    client: Arc<ClientConfig>,
    /// `None` without a certificate to show.
    server: Option<Arc<ServerConfig>>,
    members: Arc<Members>,
}

impl Tls {
    /// Trusts certificates of the authority in this PEM file, or of one of several in it.
    ///
    /// ```
    /// # use quorate::Tls;
    /// let anonymous_client = Tls::new("tls/ca.pem");
    /// # let _ = anonymous_client;
    /// ```
    #[must_use]
    pub fn new(authority: impl Into<PathBuf>) -> Self {
        Self {
            authority: authority.into(),
            identity: None,
            member_names: vec![MEMBER_NAME.to_owned()],
            is_open: false,
            is_of_member: false,
            look_every: LOOK_EVERY,
            #[cfg(test)]
            is_unchecked: false,
            loaded: Arc::default(),
        }
    }

    /// Shows a certificate: the PEM files of it, with those between it and the authority after it, and of its private
    /// key. A member needs one.
    ///
    /// ```
    /// # use quorate::Tls;
    /// let tls = Tls::new("tls/ca.pem").identity("tls/member.pem", "tls/member.key");
    /// # let _ = tls;
    /// ```
    #[must_use]
    pub fn identity(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let identity = Some((certificate.into(), key.into()));
        Self { identity, loaded: Arc::default(), ..self }
    }

    /// Which names make a certificate that of a member: domain names or IP addresses. `member.quorate.internal` if
    /// nothing was said. All members and clients of a group have to say the same.
    ///
    /// If members have certificates for their own hosts only, name all of these, those of later members included.
    ///
    /// ```
    /// # use quorate::Tls;
    /// let hosts = ["a.example.com", "b.example.com", "c.example.com"];
    /// let tls = Tls::new("tls/ca.pem").member_names(hosts);
    /// # let _ = tls;
    /// ```
    #[must_use]
    pub fn member_names<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        let member_names = names.into_iter().map(Into::into).collect();
        Self { member_names, loaded: Arc::default(), ..self }
    }

    /// Lets a member answer clients that show no certificate. One that is shown has to be good all the same, and whoever
    /// sends Raft traffic shows that of a member.
    ///
    /// ```
    /// # use quorate::Tls;
    /// let tls = Tls::new("ca.pem").identity("member.pem", "member.key").anonymous_clients();
    /// # let _ = tls;
    /// ```
    #[must_use]
    pub fn anonymous_clients(self) -> Self {
        Self { is_open: true, loaded: Arc::default(), ..self }
    }

    #[cfg(test)]
    pub(super) fn unchecked(self) -> Self {
        Self { is_unchecked: true, loaded: Arc::default(), ..self }
    }

    #[cfg(test)]
    pub(super) fn looking_every(self, look_every: Duration) -> Self {
        Self { look_every, loaded: Arc::default(), ..self }
    }

    /// The same, for a member: the others have to take its certificate for a member's.
    pub(super) fn of_member(self) -> Self {
        Self { is_of_member: true, loaded: Arc::default(), ..self }
    }

    /// Whether the files are there and make sense. They are read, so it is for those who begin.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_of_member && self.identity.is_none() {
            return Err(bad("a member needs a certificate: say identity()".to_owned()));
        }
        self.look()
    }

    /// Encrypts a connection, and makes sure that a member answers at its other end.
    ///
    /// # Cancel safety
    /// A dropped attempt closes the connection.
    pub(super) async fn meet(&self, stream: Stream, address: &str) -> Result<Socket> {
        let Keys { client, members, .. } = self.keys().await?;
        let name = members.names.first().expect("there is at least one").clone();
        match TlsConnector::from(client).connect(name, stream).await {
            Ok(stream) => Ok(Socket::Tls(Box::new(TlsStream::from(stream)))),
            Err(error) => Err(failure(address, &error)),
        }
    }

    /// Encrypts a connection that somebody has opened, and looks who it is.
    ///
    /// # Cancel safety
    /// A dropped attempt closes the connection.
    pub(super) async fn greet(&self, stream: Stream) -> io::Result<(Socket, Trust)> {
        let Keys { server, members, .. } = self.keys().await.map_err(io::Error::other)?;
        let server = server.ok_or_else(|| io::Error::other("a member without a certificate"))?;
        let stream = TlsAcceptor::from(server).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let is_member = shown.is_some_and(|shown| members.has(shown));
        let trust = if is_member { Trust::Member } else { Trust::Other };
        Ok((Socket::Tls(Box::new(TlsStream::from(stream))), trust))
    }

    /// What the files say now, or said when they made sense.
    ///
    /// # Cancel safety
    /// A dropped wait leaves the thread that reads to itself.
    async fn keys(&self) -> Result<Keys> {
        if self.is_due() {
            let tls = self.clone();
            let look = tokio::task::spawn_blocking(move || {
                if let Err(error) = tls.look() {
                    tracing::warn!(%error, "new certificates make no sense; the last ones stay");
                }
            });
            // The first has nothing else to go by.
            let patience = if self.loaded().is_some() { LOOK_PATIENCE } else { Duration::MAX };
            let _ = timeout(patience, look).await;
        }
        let loaded = self.loaded();
        let keys = loaded.as_ref().map(|loaded| loaded.keys.clone());
        keys.ok_or_else(|| bad("certificates were not read".to_owned()))
    }

    fn loaded(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to look at the files. Nobody else does so then.
    fn is_due(&self) -> bool {
        let now = Instant::now();
        match &mut *self.loaded() {
            Some(loaded) if now.duration_since(loaded.looked) < self.look_every => false,
            Some(loaded) => {
                loaded.looked = now;
                true
            }
            None => true,
        }
    }

    /// Looks at the files, and goes by them if they are other ones and make sense.
    fn look(&self) -> Result<()> {
        let files = self.read()?;
        let is_known = |loaded: &Loaded| loaded.files == files;
        if self.loaded().as_ref().is_some_and(is_known) {
            return Ok(());
        }
        let keys = self.load(&files)?;
        let mut loaded = self.loaded();
        if loaded.replace(Loaded { looked: Instant::now(), files, keys }).is_some() {
            tracing::info!(authority = %self.authority.display(), "certificates were replaced");
        }
        Ok(())
    }

    fn read(&self) -> Result<Files> {
        let identity = match &self.identity {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Files { authority: read(&self.authority)?, identity })
    }

    fn load(&self, files: &Files) -> Result<Keys> {
        let members = Arc::new(self.members(files)?);
        let provider = &members.provider;
        let client = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| bad(error.to_string()))?
            .dangerous() // Not less careful, but by other names.
            .with_custom_certificate_verifier(Arc::clone(&members) as Arc<_>);
        let Some((chain, key)) = self.shown(files)? else {
            let client = Arc::new(careful(client.with_no_client_auth()));
            return Ok(Keys { client, server: None, members });
        };
        let unfit = |error: rustls::Error| {
            bad(format!("the certificate and the key do not go together: {error}"))
        };
        let client = client.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(unfit)?;
        let clients = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&members.roots),
            Arc::clone(provider),
        );
        let clients = if self.is_open { clients.allow_unauthenticated() } else { clients };
        let clients = clients.build().map_err(|error| bad(error.to_string()))?;
        self.check_own(&chain, &members, &*clients)?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| bad(error.to_string()))?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(unfit)?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Keys { client: Arc::new(careful(client)), server: Some(Arc::new(server)), members })
    }

    /// The own certificate, with those between it and the authority, and its key.
    fn shown(&self, files: &Files) -> Result<Option<Shown>> {
        let Some(((certificate, key), (chain, private))) =
            self.identity.as_ref().zip(files.identity.as_ref())
        else {
            return Ok(None);
        };
        Ok(Some((certificates(certificate, chain)?, private_key(key, private)?)))
    }

    /// Whether the others will take the own certificate, as long as its time lasts.
    fn check_own(
        &self,
        chain: &[CertificateDer<'_>],
        members: &Members,
        clients: &dyn ClientCertVerifier,
    ) -> Result<()> {
        let Some((own, between)) = chain.split_first() else { return Ok(()) };
        let file = self.identity.as_ref().map(|(file, _)| file.display().to_string());
        let file = file.unwrap_or_default();
        match clients.verify_client_cert(own, between, UnixTime::now()) {
            Ok(_) => {}
            Err(error) if is_of_time(&error) => tracing::warn!(file, %error, "a certificate"),
            Err(_) if self.is_unchecked() => {}
            Err(error) => return Err(bad(format!("{file} is not of the authority: {error}"))),
        }
        if self.is_of_member && !members.has(own) {
            let names = self.member_names.join(", ");
            return Err(bad(format!("{file} is for none of the names of members: {names}")));
        }
        if self.is_of_member
            && !self.is_unchecked()
            && let Err(error) = members.verify(own, between, &[], UnixTime::now())
            && !is_of_time(&error)
        {
            return Err(bad(format!("{file} is not one to be called with: {error}")));
        }
        Ok(())
    }

    /// Whether it is a test's, of what others make of a certificate that its owner should not have shown.
    fn is_unchecked(&self) -> bool {
        #[cfg(test)]
        return self.is_unchecked;
        #[cfg(not(test))]
        false
    }

    fn members(&self, files: &Files) -> Result<Members> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authority, &files.authority)? {
            let file = self.authority.display();
            roots.add(certificate).map_err(|error| bad(format!("{file}: {error}")))?;
        }
        let name = |name: &String| {
            ServerName::try_from(name.clone())
                .map_err(|error| bad(format!("{name:?} is no name of members: {error}")))
        };
        let names = self.member_names.iter().map(name).collect::<Result<Vec<_>>>()?;
        if names.is_empty() {
            return Err(
                bad("members need a name, so that they can be told from others".to_owned()),
            );
        }
        let (roots, provider) =
            (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
        let chain =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| bad(error.to_string()))?;
        Ok(Members { roots, provider, chain, names })
    }
}

fn careful(mut client: ClientConfig) -> ClientConfig {
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.resumption = Resumption::disabled();
    client
}

/// Who is a member, by his certificate.
#[derive(Debug)]
struct Members {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    chain: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl Members {
    /// Whether a certificate, whose chain was looked at, is that of a member.
    fn has(&self, certificate: &CertificateDer<'_>) -> bool {
        ParsedCertificate::try_from(certificate).is_ok_and(|certificate| {
            self.names.iter().any(|name| verify_server_name(&certificate, name).is_ok())
        })
    }

    /// As it is usual, but for any of the names.
    fn verify(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let mut answer = Err(rustls::Error::from(CertificateError::ApplicationVerificationFailure));
        for name in &self.names {
            answer = self.chain.verify_server_cert(shown, between, name, ocsp, now);
            if answer.is_ok() {
                break;
            }
        }
        answer
    }
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        self.verify(shown, between, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, shown, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Whether it is not yet time for a certificate, or no longer.
fn is_of_time(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        )
    )
}

/// What the failure of a connection to `address` means: nothing was sent.
pub(super) fn failure(address: &str, error: &io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(refused) if is_of_trust(refused) => {
            Reason::Untrusted { detail: format!("{address}: {refused}") }.into()
        }
        _ => Reason::Unreachable { detail: format!("{address}: {error}") }.into(),
    }
}

/// Whether one side does not take the other's certificate. What else goes wrong may pass.
fn is_of_trust(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
                | Alert::CertificateRequired
        ),
        _ => false,
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| bad(format!("cannot read {}: {error}", path.display())))
}

fn certificates(path: &std::path::Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(bad(format!("{} has no certificate", path.display()))),
        Ok(found) => Ok(found),
        Err(error) => Err(bad(format!("{}: {error}", path.display()))),
    }
}

fn private_key(path: &std::path::Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| bad(format!("{} has no private key: {error}", path.display())))
}

fn bad(detail: String) -> Error {
    Reason::BadOption { detail }.into()
}
