//! The settings that name files: `keygate check` reads these files, also if other settings are wrong.

use super::{KeySettings, NEEDS_SHARED, Places, StoreSettings};
use crate::config::Mistake;
use crate::downstream::tls;
use crate::operators::{admin, outbox};
use crate::store::Role;
use crate::upstream;

/// The settings that name files. Those that are wrong have their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSettings {
    pub keys: KeySettings,
    pub tls: tls::Settings,
    pub admin: admin::Settings,
    pub outbox: Option<outbox::Settings>,
    /// `None` if it is wrong.
    pub store: Option<StoreSettings>,
    /// Those that are right.
    pub upstreams: Vec<upstream::Settings>,
    pub places: Places,
}

impl FileSettings {
    /// The mistake of a role that cannot work with this store.
    #[must_use]
    pub fn misfit(&self, role: Role) -> Option<Mistake> {
        let is_embedded = matches!(self.store, Some(StoreSettings::Embedded(_)));
        (role == Role::Proxy && is_embedded).then(|| Mistake::of_command_line("--role proxy", NEEDS_SHARED))
    }
}
