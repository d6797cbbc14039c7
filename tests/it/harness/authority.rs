//! A private certificate authority.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::transport::Certificate;

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::new([]).unwrap();
        // Otherwise it would have the same name as its certificates, and they would look self-signed.
        parameters.distinguished_name.push(DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for these names, or addresses.
    pub(crate) fn issue(&self, names: &[&str]) -> Certificate {
        self.issue_with(names, |_| {})
    }

    pub(crate) fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(names).unwrap();
        change(&mut parameters);
        let made = parameters.signed_by(&key, &self.0).unwrap();
        Certificate { der: made.der().clone(), pem: made.pem(), key_pem: key.serialize_pem() }
    }

    /// Its own certificate.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.0.pem().as_bytes()).unwrap()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes `NAME.pem`.
    pub(crate) fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(format!("{name}.pem")), self.0.pem()).unwrap();
    }
}
