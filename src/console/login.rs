//! Who asks: as the proxy's headers say, which are believed only where they can be the proxy's.

use axum::http::{HeaderMap, HeaderName};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::state::Console;
use crate::config::{Login, SECRET_HEADER, user_name};
use crate::domain::permission::{Permission, Role};

/// Somebody who is let in.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Visitor {
    pub name: String,
    pub roles: Vec<Role>,
}

/// Why somebody is not let in.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Stranger {
    #[error(
        "the request has not the secret of the proxy in X-Console-Secret: come by way of the proxy; if you do, it \
         sends another secret than CONSOLE_PROXY_SECRET"
    )]
    Secretless,
    #[error(
        "the header {0} names nobody, more than one, or somebody in other characters than ASCII; what does the proxy send?"
    )]
    Nameless(HeaderName),
    #[error(
        "none of your groups has a role here; the header {header} says: {groups}. CONSOLE_ROLES gives groups their roles"
    )]
    Roleless { header: HeaderName, groups: String },
}

impl Visitor {
    /// Whoever sent these headers.
    pub fn of(headers: &HeaderMap, console: &Console) -> Result<Self, Stranger> {
        let secret = match &console.checked.login {
            Login::Local { user } => return Ok(Self { name: user.clone(), roles: Role::ALL.to_vec() }),
            Login::Proxy { secret } => secret,
        };
        if let Some(secret) = secret {
            let given = only(headers, &SECRET_HEADER).ok_or(Stranger::Secretless)?;
            // Digests are compared: how long that takes tells nothing of the secret.
            if Sha256::digest(given) != Sha256::digest(secret.expose()) {
                return Err(Stranger::Secretless);
            }
        }
        let header = &console.settings.console_user_header;
        let name =
            only(headers, header).and_then(user_name).ok_or_else(|| Stranger::Nameless(header.clone()))?;
        let header = &console.settings.console_groups_header;
        let groups: Vec<&str> = headers
            .get_all(header)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|groups| groups.split(','))
            .map(str::trim)
            .filter(|group| !group.is_empty())
            .collect();
        let has = |role: &Role| {
            let given = console.settings.console_roles.iter().filter(|given| given.role == *role);
            given.into_iter().any(|given| groups.contains(&given.group.as_str()))
        };
        let roles: Vec<Role> = Role::ALL.into_iter().filter(has).collect();
        if roles.is_empty() {
            let groups = if groups.is_empty() { "nothing".to_owned() } else { groups.join(", ") };
            return Err(Stranger::Roleless { header: header.clone(), groups });
        }
        Ok(Self { name, roles })
    }

    pub fn may(&self, permission: Permission) -> bool {
        permission.is_of(&self.roles)
    }
}

/// The value of a header that is there once, in text.
pub(super) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok()).flatten()
}
