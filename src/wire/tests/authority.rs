//! An authority that gives certificates to whoever is in a test.

use crate::wire::Tls;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// The name that makes a certificate a member's.
pub(crate) const MEMBER: &str = "member.quorate.internal";

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).unwrap()
}

/// Certificates in a folder, and who signs them.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Self::issuer(&folder);
        Self { folder, issuer }
    }

    /// Another authority under the same names: its certificates replace those of the one before.
    pub(crate) fn renew(&mut self) {
        self.issuer = Self::issuer(&self.folder);
    }

    fn issuer(folder: &TempDir) -> Issuer<'static, KeyPair> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Issuer::new(params, key)
    }

    /// Writes a certificate for some names, and its key.
    pub(crate) fn issue(&self, file: &str, names: &[&str]) {
        self.write(file, &params(names));
    }

    /// The same, of one whose time is over.
    pub(crate) fn issue_expired(&self, file: &str, names: &[&str]) {
        let mut params = params(names);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.write(file, &params);
    }

    /// The same, of one that only whoever calls can show.
    pub(crate) fn issue_for_calling(&self, file: &str, names: &[&str]) {
        let mut params = params(names);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.write(file, &params);
    }

    fn write(&self, file: &str, params: &CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Trusts this authority, and shows nothing.
    pub(crate) fn anonymous(&self) -> Tls {
        Tls::new(self.path("ca.pem"))
    }

    /// Trusts this authority, and shows the certificate of this name.
    pub(crate) fn as_one(&self, file: &str) -> Tls {
        self.anonymous()
            .identity(self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")))
    }

    /// Issues a certificate for some names, and shows it.
    pub(crate) fn as_new(&self, file: &str, names: &[&str]) -> Tls {
        self.issue(file, names);
        self.as_one(file)
    }
}
