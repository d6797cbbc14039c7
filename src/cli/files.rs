//! The files that a configuration names: certificates, keys, secrets, tokens. Each mistake in them is told at the line
//! that names the file.

use std::path::Path;

use crate::app::{KeyTools, SecretError, read_secret};
use crate::config::{FileSettings, KeySettings, Mistake, StoreSettings};
use crate::downstream::tls::{Acceptor, Certificate, LoadError};
use crate::operators::admin::TokenFileError;
use crate::secret_file::SecretFileError;
use crate::store::embedded::{self, Verified};
use crate::store::redis::{self, OpenError};
use crate::tls::LoadErrors;
use crate::tls::client::LoadError as TlsError;
use crate::tls::pem::PemError;
use crate::upstream;

/// What the files have.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// The certificates for clients.
    pub(super) certificates: Vec<Certificate>,
    /// The file of an embedded store; `None` also if it cannot be opened, which the start tells.
    pub(super) store: Option<Verified>,
    /// All mistakes.
    pub(super) mistakes: Vec<Mistake>,
}

/// Reads all files.
pub(super) fn read(settings: &FileSettings) -> Files {
    let (mut mistakes, mut verified) = (Vec::new(), None);
    let FileSettings { keys, admin, outbox, store, .. } = settings;
    let pepper_alone = KeySettings { audit_key_files: Vec::new(), ..keys.clone() };
    let audit_key_alone = KeySettings { pepper_files: Vec::new(), ..keys.clone() };
    let with_pepper = KeyTools::new(&pepper_alone);
    if let (Ok(tools), Some(StoreSettings::Embedded(store))) = (&with_pepper, store) {
        match embedded::verify(store, &tools.sealer) {
            Ok(store) => verified = store,
            Err(wrong @ embedded::OpenError::WrongPepper { .. }) => {
                mistakes.push(Mistake::in_file(&settings.places, &PEPPER, wrong.to_string()));
            }
            Err(_) => {}
        }
    }
    let secrets = [with_pepper.err(), KeyTools::new(&audit_key_alone).err()];
    mistakes.extend(secrets.iter().flatten().map(|error| of_secret(settings, error)));
    for file in outbox.iter().flat_map(|outbox| &outbox.key_files) {
        let key = read_secret("outbox.key_file", file);
        mistakes.extend(key.err().map(|error| of_secret(settings, &error)));
    }
    if let Some(remote) = &admin.remote {
        mistakes.extend(remote.check().err().map(|error| of_tokens(settings, &error)));
    }
    if let Some(StoreSettings::Redis(store)) = store {
        mistakes.extend(redis::check_files(store).iter().map(|error| of_redis(settings, store, error)));
    }
    mistakes.extend(check_upstreams(settings));
    let (certificates, of_tls) = read_certificates(settings);
    mistakes.extend(of_tls);
    Files { certificates, store: verified, mistakes }
}

/// Reads the certificates for clients and their keys.
pub(super) fn read_certificates(settings: &FileSettings) -> (Vec<Certificate>, Vec<Mistake>) {
    match Acceptor::load(&settings.tls) {
        Ok(acceptor) => {
            (acceptor.map(|acceptor| acceptor.certificates().to_vec()).unwrap_or_default(), Vec::new())
        }
        Err(LoadErrors(errors)) => {
            (Vec::new(), errors.iter().map(|error| of_certificate(settings, error)).collect())
        }
    }
}

/// Reads the certificates and keys for upstreams with TLS.
pub(super) fn check_upstreams(settings: &FileSettings) -> Vec<Mistake> {
    match upstream::loaded::load(settings.upstreams.clone()) {
        Ok(_) => Vec::new(),
        Err(LoadErrors(errors)) => errors.iter().map(|error| of_upstream(settings, error)).collect(),
    }
}

fn of_upstream(settings: &FileSettings, error: &upstream::tls::LoadError) -> Mistake {
    let upstream::tls::LoadError { section, cause, files } = error;
    let client = files.client.as_ref();
    let key = match cause {
        TlsError::Pem(error) => match client {
            Some((certificate, _)) if file_of(error) == certificate => "cert",
            Some((_, key)) if file_of(error) == key => "key",
            Some(_) | None => "ca",
        },
        TlsError::Unusable(_) if client.is_some() => "cert",
        TlsError::Unusable(_) | TlsError::NoSystemRoots(_) => "ca",
    };
    let [key, ca] = [key, "ca"].map(|key| format!("{section}.{key}"));
    at(settings, &[&key, &ca], &cause.to_string())
}

/// A mistake at the first of these keys that the configuration has. The text needs not name it again.
fn at(settings: &FileSettings, keys: &[&str], text: &str) -> Mistake {
    let text = keys.iter().fold(text.to_owned(), |text, key| text.replacen(&format!("{key} "), "", 1));
    Mistake::in_file(&settings.places, keys, text)
}

/// The settings that name peppers.
const PEPPER: [&str; 2] = ["keys.pepper_file", "keys.pepper_files"];

fn of_secret(settings: &FileSettings, error: &SecretError) -> Mistake {
    let (one, several) = (error.what(), format!("{}s", error.what()));
    at(settings, &[one, &several], &error.to_string())
}

fn of_tokens(settings: &FileSettings, error: &TokenFileError) -> Mistake {
    at(settings, &["admin.tokens_file"], &error.to_string())
}

fn of_redis(settings: &FileSettings, store: &redis::Settings, error: &OpenError) -> Mistake {
    let key = match error {
        OpenError::Password(error) => error.what(),
        OpenError::NoPassword { key, .. } => *key,
        OpenError::Tls(TlsError::Pem(error)) => {
            let client = store.tls.as_ref().and_then(|tls| tls.client.as_ref());
            match client {
                Some((certificate, _)) if file_of(error) == certificate => "store.tls.cert",
                Some((_, key)) if file_of(error) == key => "store.tls.key",
                Some(_) | None => "store.tls.ca",
            }
        }
        OpenError::Tls(_) => "store.tls.cert",
        OpenError::NoAuthority => "store.url",
    };
    at(settings, &[key, "store.tls.ca"], error.to_string().trim_start_matches("store.tls: "))
}

fn of_certificate(settings: &FileSettings, error: &LoadError) -> Mistake {
    let certificates = &settings.tls.certificates;
    let of_certificate = |file: &Path| certificates.iter().position(|files| files.certificate == file);
    let of_key = |file: &Path| certificates.iter().position(|files| files.key == file);
    let (key, number) = match error {
        LoadError::File(error) => match of_certificate(file_of(error)) {
            Some(number) => ("cert", Some(number)),
            None => ("key", of_key(file_of(error))),
        },
        LoadError::Mismatch { key, .. } => ("key", of_key(key)),
        LoadError::Unusable { certificate, .. } | LoadError::Nameless(certificate) => {
            ("cert", of_certificate(certificate))
        }
        LoadError::Library(_) => ("cert", None),
    };
    let text = error.to_string().trim_start_matches("server.tls: ").to_owned();
    Mistake::in_file_of(&settings.places, "server.tls", key, number, text)
}

/// The file that a mistake is in.
fn file_of(error: &PemError) -> &Path {
    match error {
        PemError::Io { file, .. } | PemError::Pem { file, .. } => file,
        PemError::NoCertificate(file) | PemError::NoKey(file) => file,
        PemError::Key(error) => SecretFileError::path(error),
    }
}
