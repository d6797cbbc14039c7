//! What an operator is told if no gateway takes a command.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::operators::admin::{ClientError, Way};

/// Why a gateway did not take a command, and what to do.
pub(super) fn explain(error: &ClientError, way: Way<'_>) -> String {
    let place = match way {
        Way::Socket(path) => format!("behind the admin socket {}", path.display()),
        Way::Remote { authority, .. } => format!("at {authority}"),
    };
    match (error, way) {
        (ClientError::Absent, Way::Remote { .. }) => {
            format!("no gateway answers {place}; check the address, and that the gateway runs")
        }
        (ClientError::Unreachable(waited), _) => format!(
            "no connection to the gateway {place} within {} s; check the address and the network, and that the gateway \
             runs",
            waited.as_secs()
        ),
        (ClientError::Silent(waited), way) => format!(
            "the gateway does not answer: pass --store{} to work on the store itself. There was no sign of life {place} for {} s; \
             its log may say why. If it hangs, restart it. The command may have been carried out: look before you repeat it",
            if matches!(way, Way::Remote { .. }) { ", on a machine that has its configuration," } else { "" },
            waited.as_secs()
        ),
        (ClientError::Forbidden, Way::Socket(path)) => {
            let owner = owner_of(path).map_or_else(|| "another user".to_owned(), |(_, text)| text);
            let user = owner_of(path).map_or_else(|| "USER".to_owned(), |(name, _)| name);
            format!(
                "the admin socket {} belongs to {owner}, and nobody else may use it; run the command as that user, as in \
                 sudo -u {user} keygate …",
                path.display()
            )
        }
        (error, _) => error.to_string(),
    }
}

/// The user that a path belongs to, as a command takes it and as people read it. If the path cannot be seen, the folder
/// counts that hides it.
fn owner_of(path: &Path) -> Option<(String, String)> {
    let uid = path.ancestors().find_map(|path| fs::symlink_metadata(path).ok())?.uid();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(name_of(uid, &users).map_or_else(
        || (format!("'#{uid}'"), format!("uid {uid}")),
        |name| (name.to_owned(), format!("{name} (uid {uid})")),
    ))
}

/// The name of a user in the text of `/etc/passwd`.
fn name_of(uid: u32, users: &str) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn a_users_name_stands_beside_the_id() {
        let users = "root:x:0:0:root:/root:/bin/sh\nkeygate:x:998:998::/:/bin/false\nodd\n";
        assert_eq!((name_of(0, users), name_of(998, users)), (Some("root"), Some("keygate")));
        assert_eq!(name_of(9, users), None);
    }
}
