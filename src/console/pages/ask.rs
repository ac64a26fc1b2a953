//! What somebody is about to do: a page that says what would come of it, and a form that does it. The form
//! carries what the row was; a row that has changed is not touched.

use askama::Template;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::console::answer::{Failure, Page, see_other};
use crate::console::visit::{Frame, Visit};
use crate::desk::interventions::{Attribution, demand_of};
use crate::desk::proposals::{Deed, ProposeError, policy, propose};
use crate::desk::version::Version;
use crate::domain::invisible::is_invisible;
use crate::domain::permission::role_of;

#[derive(Template, Serialize)]
#[template(path = "ask.html")]
pub(super) struct AskPage {
    #[serde(skip)]
    pub frame: Frame,
    /// What is to be done.
    pub what: String,
    /// What would come of it, in order.
    pub effects: Vec<String>,
    /// Why it would be refused; none if it would not.
    pub refusal: Option<String>,
    /// Whether a second person must approve it.
    pub is_proposal: bool,
    /// Whether it may spend an update, or declares one spent.
    pub spends: bool,
    /// What the form carries.
    pub fields: Vec<Field>,
    /// Where the form goes, and where the page came from.
    pub path: String,
    pub back: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Field {
    pub name: &'static str,
    pub value: String,
}

impl AskPage {
    fn mode(&self) -> &'static str {
        mode(self.is_proposal)
    }
}

impl Page for AskPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[];
}

/// What every form says.
#[derive(Debug, Deserialize)]
pub(in crate::console) struct Reason {
    #[serde(default)]
    note: String,
    /// What the page said of it: whether it is done, or proposed.
    #[serde(default)]
    mode: String,
}

/// A note is kept for ever.
const NOTE_LENGTH_MAX: usize = 500;

/// Whether a form does a thing, or proposes it.
pub(super) const fn mode(is_proposal: bool) -> &'static str {
    if is_proposal { "propose" } else { "do" }
}

impl Reason {
    /// Who does it and why.
    pub fn attribution<'a>(&'a self, visit: &'a Visit) -> Result<Attribution<'a>, Failure> {
        let note = self.note.trim();
        if note.is_empty() {
            return Err(Failure::Unfit(
                "Say why: the note is empty. Go back, and nothing is lost.".to_owned(),
            ));
        }
        if note.chars().count() > NOTE_LENGTH_MAX
            || note.chars().any(|c| is_invisible(c) && !matches!(c, '\r' | '\n' | '\t'))
        {
            return Err(Failure::Unfit(format!(
                "The note must have at most {NOTE_LENGTH_MAX} characters, each of which can be seen."
            )));
        }
        Ok(Attribution { by: &visit.visitor.name, note, proposal: None })
    }

    /// Whether it is proposed and not done, as the page said: what needs another's approval by now, and did
    /// not then, or the other way round, is shown anew.
    pub async fn is_proposed(&self, visit: &Visit, action: &str) -> Result<bool, Failure> {
        let is_proposal = is_proposed(visit, action).await?;
        if self.mode != mode(is_proposal) {
            return Err(Failure::Stale(match is_proposal {
                true => {
                    "A second person must approve this by now. Go back, and load the page anew.".to_owned()
                }
                false => "Nobody else need approve this by now. Go back, and load the page anew.".to_owned(),
            }));
        }
        Ok(is_proposal)
    }
}

/// Whether what somebody does needs another's approval: the policy says so, or it is another role's to do.
pub(super) async fn is_proposed(visit: &Visit, action: &str) -> Result<bool, Failure> {
    let is_anothers = role_of(action).is_none_or(|role| !visit.visitor.roles.contains(&role));
    let demanded = policy(&visit.console.pages).await?.actions;
    Ok(is_anothers || demanded.iter().any(|demanded| demanded == action))
}

/// Writes down what another person is asked to approve, and shows it.
pub(super) async fn propose_it(
    visit: &Visit,
    deed: &Deed,
    expected: Option<&Version>,
    by: Attribution<'_>,
) -> Result<Response, Failure> {
    let proposed = propose(&visit.console.actions, deed, visit.console.rules, expected, by).await;
    let proposed = proposed.map_err(|error| match error {
        ProposeError::Changed { .. } => Failure::Stale(error.to_string()),
        ProposeError::Refused(_) | ProposeError::Waits(_) => Failure::Refused(error.to_string()),
        ProposeError::Database(error) => Failure::Database(error),
    })?;
    see_other(&format!("/proposals/{}", proposed.proposal.id))
}

/// What the database says, where it is the policy that it keeps.
pub(super) fn refused_by_database(error: sqlx::Error) -> Failure {
    match demand_of(&error) {
        Some(demand) => Failure::Refused(demand.to_owned()),
        None => Failure::Database(error),
    }
}
