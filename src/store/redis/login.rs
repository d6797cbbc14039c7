//! The login at servers: a user's name, and passwords that are read anew from their file.
//!
//! A password is changed in two places, in its file and in Redis, and in a cluster or among sentinels at one server after
//! another. So a server that refuses the password gets the one that is in the file now, and then the two that servers
//! accepted last.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::RedisConnectionInfo;
use zeroize::Zeroizing;

use super::settings::{Node, OpenError, read_password};
use crate::telemetry::Notice;

/// A password. Its copies are one value in memory.
pub(super) type Password = Arc<Zeroizing<String>>;

/// The login at the servers of one kind.
pub(super) struct Login {
    username: Option<String>,
    file: Option<PathBuf>,
    /// The configuration keys for the name and for the file.
    keys: [&'static str; 2],
    /// `None` without a file.
    passwords: Option<Mutex<Passwords>>,
}

/// The passwords that may be right.
struct Passwords {
    /// The one to try first.
    first: Password,
    /// The one that a server accepted last, and the one before it.
    accepted: Option<Password>,
    former: Option<Password>,
}

impl Login {
    pub(super) fn open(
        username: Option<&str>,
        file: Option<PathBuf>,
        keys: [&'static str; 2],
    ) -> Result<Self, OpenError> {
        let read = file.as_deref().map(|file| read_password(keys[1], file)).transpose()?;
        let passwords =
            read.map(|first| Mutex::new(Passwords { first: Arc::new(first), accepted: None, former: None }));
        Ok(Self { username: username.map(str::to_owned), file, keys, passwords })
    }

    /// Reads the file again. The next connection uses its password.
    pub(super) fn reread(&self) -> Result<(), OpenError> {
        if let (Some(file), Some(mut known)) = (&self.file, self.passwords()) {
            known.first = Arc::new(read_password(self.keys[1], file)?);
        }
        Ok(())
    }

    /// The password to try first.
    pub(super) fn first(&self) -> Option<Password> {
        self.passwords().map(|known| Arc::clone(&known.first))
    }

    /// Another password to try at a server that has refused these. Reads the file.
    ///
    /// # Errors
    /// What is to be done, when there is no other.
    pub(super) async fn after(&self, refused: &[Password]) -> Result<Password, String> {
        let read = match &self.file {
            Some(file) => {
                let (key, file) = (self.keys[1], file.clone());
                // The file may be on a disk that hangs.
                tokio::task::spawn_blocking(move || read_password(key, &file)).await.ok()
            }
            None => None,
        };
        let (from_file, trouble) = match read {
            Some(Ok(password)) => (Some(Arc::new(password)), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let known = self.passwords().map(|known| (known.accepted.clone(), known.former.clone()));
        let (accepted, former) = known.unwrap_or_default();
        let mut others = [from_file, accepted, former].into_iter().flatten();
        others.find(|other| !refused.contains(other)).ok_or_else(|| {
            let [username, file] = self.keys;
            let advice = format!("it refuses the login: check {username} and {file}");
            trouble.map_or(advice.clone(), |trouble| format!("{advice}; {trouble}"))
        })
    }

    /// This server has accepted the password.
    pub(super) fn note_accepted(&self, node: &Node, password: Password) {
        let Some(mut known) = self.passwords() else { return };
        known.first = Arc::clone(&password);
        if known.accepted.as_ref() == Some(&password) {
            return;
        }
        let is_new = known.accepted.is_some() && known.former.as_ref() != Some(&password);
        known.former = known.accepted.replace(password);
        drop(known);
        if is_new {
            let file = self.keys[1];
            Notice::PasswordAccepted.log(&format!("Redis at {node} accepts the new password in {file}"));
        }
    }

    /// What the client of Redis says first.
    pub(super) fn greeting(
        &self,
        template: &RedisConnectionInfo,
        password: Option<&Password>,
    ) -> RedisConnectionInfo {
        let mut greeting = template.clone();
        if let Some(username) = &self.username {
            greeting = greeting.set_username(username);
        }
        match password {
            Some(password) => greeting.set_password(password.as_str()),
            None => greeting,
        }
    }

    fn passwords(&self) -> Option<MutexGuard<'_, Passwords>> {
        self.passwords.as_ref().map(|known| known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &std::path::Path, password: &str) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(file, password).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The passwords that a server gets which accepts only `right`; the last is the one that it accepts, if there is one.
    async fn tried(login: &Login, right: &str) -> Vec<String> {
        let node = Node::new("redis", 6379);
        let (mut refused, mut next) = (Vec::new(), login.first());
        while let Some(password) = next {
            let is_right = password.as_str() == right;
            refused.push(Arc::clone(&password));
            if is_right {
                login.note_accepted(&node, password);
                break;
            }
            next = login.after(&refused).await.ok();
        }
        refused.iter().map(|password| password.to_string()).collect()
    }

    #[tokio::test]
    async fn a_password_is_looked_for_in_the_file_and_among_those_that_worked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        write(&file, "one");
        let login = Login::open(None, Some(file.clone()), ["store.username", "store.password_file"]).unwrap();
        assert_eq!(tried(&login, "one").await, ["one"]);
        write(&file, "two");
        assert_eq!(tried(&login, "one").await, ["one"], "the file is read when it is needed");
        assert_eq!(tried(&login, "two").await, ["one", "two"]);
        assert_eq!(tried(&login, "two").await, ["two"]);
        assert_eq!(tried(&login, "one").await, ["two", "one"], "a server that was not changed yet");
        assert_eq!(tried(&login, "two").await, ["one", "two"], "and one that was");
        write(&file, "three");
        login.reread().unwrap();
        assert_eq!(tried(&login, "two").await, ["three", "two"], "Redis is changed after the file");
        assert_eq!(tried(&login, "three").await, ["two", "three"]);
        assert_eq!(tried(&login, "four").await, ["three", "two"], "nothing is tried twice");
        std::fs::remove_file(&file).unwrap();
        let refused =
            login.after(&[Arc::clone(&login.first().unwrap()), Arc::new("two".to_owned().into())]).await;
        let advice = refused.unwrap_err();
        assert!(advice.contains("check store.username and store.password_file; cannot read"), "{advice}");
        assert_eq!(tried(&login, "three").await, ["three"], "a file that is away does no harm");
    }
}
