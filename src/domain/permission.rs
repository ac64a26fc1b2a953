//! Who may do what in the console: one table.

use serde::Serialize;

/// What somebody is, by the groups that the login gives them. One may be several.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Support: sees.
    Viewer,
    /// SRE: pauses, resumes, sends again.
    Operator,
    /// KYC operations: settles what no read could.
    Reviewer,
    /// Compliance: sees who did what, and who saw whom.
    Auditor,
}

/// What a page lets somebody do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permission {
    /// See jobs, customers, worklists and the fleet.
    View,
    /// Pause and resume all the work.
    Pause,
    /// Send ended jobs again. A reviewer proposes it.
    Replay,
    /// Settle jobs, and say how many updates a customer spent elsewhere.
    Decide,
    /// Decide on what another person proposed, where one's roles let one do it oneself.
    Approve,
    /// See what people did and why, and who saw which customer.
    Audit,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Reviewer, Self::Auditor];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Reviewer => "reviewer",
            Self::Auditor => "auditor",
        }
    }
}

impl Permission {
    /// The roles that have it: any one of them is enough.
    pub const fn roles(self) -> &'static [Role] {
        match self {
            Self::View => &Role::ALL,
            Self::Pause => &[Role::Operator],
            Self::Replay | Self::Approve => &[Role::Operator, Role::Reviewer],
            Self::Decide => &[Role::Reviewer],
            Self::Audit => &[Role::Auditor],
        }
    }

    /// Whether somebody with these roles has it.
    pub fn is_of(self, roles: &[Role]) -> bool {
        roles.iter().any(|role| self.roles().contains(role))
    }
}

/// The role that does a thing by itself where the policy lets one person do it, and that approves it where
/// the policy demands two. Actions are named as the table `intervention` names them.
pub fn role_of(action: &str) -> Option<Role> {
    match action {
        "pause" | "resume" | "replay" | "requeue" => Some(Role::Operator),
        "resolve" | "budget" | "forget" => Some(Role::Reviewer),
        _ => None,
    }
}
