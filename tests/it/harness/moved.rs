//! Keys that were made elsewhere, as an import takes them.

use keygate::vocabulary::key::Environment;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The SHA-256 of a secret, in hexadecimal digits.
pub(crate) fn sha256(secret: impl AsRef<[u8]>) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The line of an import for a key of this name with one scope; `more` has further fields, or others.
pub(crate) fn moved_key(secret: &str, name: &str, more: &Value) -> Value {
    let environment = if secret.contains("_live_") { Environment::Live } else { Environment::Test };
    let mut line = json!({
        "sha256": sha256(secret), "name": name, "environment": environment, "scopes": ["jobs:read"],
        "last_four": &secret[secret.len() - 4..],
    });
    line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line
}
