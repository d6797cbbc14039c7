//! Upstreams whose files were read: what a worker makes connections by.

use std::sync::Arc;

use super::Settings;
use super::tls::{Identity, LoadError};
use crate::tls::LoadErrors;
use crate::vocabulary::key::Environment;

/// An upstream whose files were read.
#[derive(Clone, Debug)]
pub struct Loaded {
    settings: Settings,
    /// By environment.
    identities: [Arc<Identity>; 2],
}

impl Loaded {
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) const fn identity(&self, environment: Environment) -> &Arc<Identity> {
        &self.identities[environment as usize]
    }

    /// Whether nothing would change with the other: neither a setting nor the content of a file.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let identities = self.identities.iter().zip(&other.identities);
        self.settings == other.settings && identities.into_iter().all(|(one, other)| one.is_same(other))
    }
}

/// Reads the files of all upstreams.
///
/// # Errors
/// Every mistake in every file.
pub fn load(upstreams: Vec<Settings>) -> Result<Vec<Loaded>, LoadErrors<LoadError>> {
    let (mut all, mut errors) = (Vec::with_capacity(upstreams.len()), Vec::new());
    for settings in upstreams {
        match Environment::ALL.map(|environment| Identity::load(&settings, environment).map(Arc::new)) {
            [Ok(live), Ok(test)] => all.push(Loaded { settings, identities: [live, test] }),
            identities => errors.extend(identities.into_iter().filter_map(Result::err).map(|error| *error)),
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(LoadErrors(errors)) }
}
