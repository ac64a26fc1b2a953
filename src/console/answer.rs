//! A page is one struct: as HTML by its template, as JSON, and its tables as CSV.

use std::fmt;

use askama::Template;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::warn;

use super::assets;
use super::login::Stranger;
use crate::domain::permission::Role;
use crate::domain::state::UnknownWord;
use crate::journal::{LOCK_NOT_AVAILABLE, READ_ONLY, code_of};
use crate::visible::{cell, visible_lines};

/// In which form a page is asked for, by the end of its address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    Html,
    Json,
    Csv,
}

impl Format {
    const ALL: [Self; 3] = [Self::Html, Self::Json, Self::Csv];

    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Html => "",
            Self::Json => ".json",
            Self::Csv => ".csv",
        }
    }

    /// The form that an address asks for.
    pub fn of(path: &str) -> Self {
        let named =
            Self::ALL.into_iter().find(|format| *format != Self::Html && path.ends_with(format.suffix()));
        named.unwrap_or(Self::Html)
    }
}

/// A page: what it says, and where its tables are in that.
pub(super) trait Page: Template + Serialize {
    /// Of each table, its name and the pointer to its rows in the JSON; the first is the CSV of the page.
    const TABLES: &'static [(&'static str, &'static str)];
}

/// A page in the form that is asked for; of a CSV, the table that is named.
pub(super) fn send<P: Page>(page: &P, format: Format, table: Option<&str>) -> Result<Response, Failure> {
    let broken = |error: &dyn fmt::Display| {
        warn!(%error, "a page of the console could not be written");
        Failure::Broken
    };
    match format {
        Format::Html => html(StatusCode::OK, page),
        Format::Json => {
            let body = serde_json::to_string_pretty(page).map_err(|error| broken(&error))?;
            Ok(([(CONTENT_TYPE, "application/json")], body + "\n").into_response())
        }
        Format::Csv => {
            let name = table.or_else(|| P::TABLES.first().map(|(name, _)| *name)).ok_or(Failure::NoTable)?;
            let (name, pointer) =
                P::TABLES.iter().find(|(known, _)| *known == name).ok_or(Failure::NoTable)?;
            let page = serde_json::to_value(page).map_err(|error| broken(&error))?;
            let body = csv(page.pointer(pointer).unwrap_or(&Value::Null)).map_err(|error| broken(&error))?;
            let file = HeaderValue::from_str(&format!("attachment; filename=\"{name}.csv\""));
            let file = file.map_err(|error| broken(&error))?;
            let kind = HeaderValue::from_static("text/csv; charset=utf-8");
            Ok(([(CONTENT_TYPE, kind), (CONTENT_DISPOSITION, file)], body).into_response())
        }
    }
}

/// A page as HTML. What turns the direction of text in it is shown, and not obeyed.
pub(super) fn html(status: StatusCode, page: &impl Template) -> Result<Response, Failure> {
    let text = page.render().map_err(|error| {
        warn!(%error, "a page of the console could not be written");
        Failure::Broken
    })?;
    let body = visible_lines(&text).into_owned();
    Ok((status, [(CONTENT_TYPE, "text/html; charset=utf-8")], body).into_response())
}

/// Rows as CSV: the columns are the fields, and of a field that has fields of its own, those.
fn csv(rows: &Value) -> Result<Vec<u8>, csv::Error> {
    let rows: Vec<Vec<(String, &Value)>> =
        rows.as_array().into_iter().flatten().map(|row| flat("", row)).collect();
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    if !columns.is_empty() {
        writer.write_record(&columns)?;
    }
    for row in &rows {
        let value =
            |column: &&str| row.iter().find(|(name, _)| name == column).map_or(&Value::Null, |(_, v)| v);
        writer.write_record(columns.iter().map(|column| cell(value(column))))?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

fn flat<'a>(prefix: &str, row: &'a Value) -> Vec<(String, &'a Value)> {
    let Value::Object(fields) = row else { return vec![(prefix.to_owned(), row)] };
    let name = |field: &String| match prefix {
        "" => field.clone(),
        prefix => format!("{prefix}.{field}"),
    };
    fields.iter().flat_map(|(field, value)| flat(&name(field), value)).collect()
}

/// After something was done, its page is shown.
pub(super) fn see_other(path: &str) -> Result<Response, Failure> {
    let path = HeaderValue::from_str(path).map_err(|_| Failure::Broken)?;
    Ok((StatusCode::SEE_OTHER, [(LOCATION, path)]).into_response())
}

/// Why a request is not answered with its page.
#[derive(Debug)]
pub(super) enum Failure {
    Stranger(Stranger),
    NotAllowed {
        roles: &'static [Role],
        of: Vec<Role>,
    },
    WrongHost {
        seen: String,
    },
    /// A form that is not known to be ours.
    Forged {
        seen: String,
    },
    /// A form that does not say what it must.
    Unfit(String),
    /// What was to be done is refused by the rules.
    Refused(String),
    /// What a form was about has changed since it was shown.
    Stale(String),
    NotFound,
    /// Nothing is known of what the address names.
    Unknown(String),
    NoTable,
    Busy,
    TooLarge,
    TooLong,
    /// The database does not answer, or refuses.
    Database(sqlx::Error),
    Broken,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        match &*code_of(&error) {
            // What was asked for holds a character that no text of the database can.
            NOT_IN_ENCODING => Self::Unfit("It holds a character that no name of ours has.".to_owned()),
            _ => Self::Database(error),
        }
    }
}

impl From<UnknownWord> for Failure {
    fn from(error: UnknownWord) -> Self {
        Self::Database(sqlx::Error::Decode(error.into()))
    }
}

/// SQLSTATEs, as "PostgreSQL Error Codes" has them.
const QUERY_CANCELED: &str = "57014";
const NOT_IN_ENCODING: &str = "22021";

#[derive(Template)]
#[template(path = "failure.html")]
struct FailurePage<'a> {
    css: &'static str,
    icon: &'static str,
    status: u16,
    what: &'a str,
    why: &'a str,
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Stranger(Stranger::Roleless { .. }) | Self::NotAllowed { .. } | Self::Forged { .. } => {
                StatusCode::FORBIDDEN
            }
            Self::Stranger(_) => StatusCode::UNAUTHORIZED,
            Self::WrongHost { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Unfit(_) => StatusCode::BAD_REQUEST,
            Self::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Stale(_) => StatusCode::CONFLICT,
            Self::NotFound | Self::Unknown(_) | Self::NoTable => StatusCode::NOT_FOUND,
            Self::Busy | Self::Database(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooLong => StatusCode::GATEWAY_TIMEOUT,
            Self::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Stranger(_) => "You are not let in",
            Self::NotAllowed { .. } => "Your role does not let you do this",
            Self::WrongHost { .. } => "This is not the console's address",
            Self::Forged { .. } => "This form did not come from the console",
            Self::Unfit(_) => "The form does not say what it must",
            Self::Refused(_) => "The rules refuse this, and nothing was done",
            Self::Stale(_) => "This has changed since you saw it, and nothing was done",
            Self::NotFound => "There is no such page",
            Self::Unknown(_) => "Nothing is known of this",
            Self::NoTable => "There is no such table",
            Self::Busy => "The console is busy",
            Self::TooLarge => "The form is too large",
            Self::TooLong => "This took too long, and was given up",
            Self::Database(error) if error.as_database_error().is_some() => "The database refuses",
            Self::Database(_) => "The database does not answer",
            Self::Broken => "The page could not be written",
        }
    }

    pub fn why(&self) -> String {
        let names = |roles: &[Role]| roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" or ");
        match self {
            Self::Stranger(stranger) => stranger.to_string(),
            Self::NotAllowed { roles, of } => {
                format!("It is for whoever is {}; you are {}.", names(roles), names(of))
            }
            Self::WrongHost { seen } => {
                format!("The request was sent to \"{seen}\", which is not the host of CONSOLE_PUBLIC_URL.")
            }
            Self::Forged { seen } => format!(
                "Nothing was done. The request has {seen}; from a form of the console it has Sec-Fetch-Site: same-origin, \
                 or an Origin that is CONSOLE_PUBLIC_URL. A proxy in front must leave both as they are."
            ),
            Self::Unfit(why) | Self::Refused(why) | Self::Stale(why) | Self::Unknown(why) => why.clone(),
            Self::NotFound => "Does the address name a job or a customer by its whole id?".to_owned(),
            Self::NoTable => "The page has no table of that name to be had as CSV.".to_owned(),
            Self::Busy => "It answers 32 requests at once. Try again.".to_owned(),
            Self::TooLarge => "It has more than 64 KiB, or was cut off. Nothing was done.".to_owned(),
            Self::TooLong => "Was it done? The job's page tells, before you try again.".to_owned(),
            Self::Database(error) => match &*code_of(error) {
                "" => "Nothing is known to have been done: see the job's page once it answers.".to_owned(),
                LOCK_NOT_AVAILABLE | QUERY_CANCELED => {
                    "Something else holds what this is about, such as a worker at work. Nothing was done; try again."
                        .to_owned()
                }
                READ_ONLY => {
                    "It takes no writes: a standby, a full disk, or a switch of its operator's. Nothing was done."
                        .to_owned()
                }
                _ => match error.as_database_error() {
                    Some(refusal) => format!("It says: {}. Nothing was done.", refusal.message()),
                    None => "Nothing was done.".to_owned(),
                },
            },
            Self::Broken => "The log says why.".to_owned(),
        }
    }

    pub fn respond(&self, format: Format) -> Response {
        let (status, what, why) = (self.status(), self.what(), self.why());
        if let Self::Database(error) = self {
            warn!(%error, "a page of the console was refused by the database");
        }
        if format != Format::Html {
            let body = json!({ "error": what, "why": why }).to_string() + "\n";
            return (status, [(CONTENT_TYPE, "application/json")], body).into_response();
        }
        let page = FailurePage {
            css: assets::css(),
            icon: assets::icon(),
            status: status.as_u16(),
            what,
            why: &why,
        };
        html(status, &page).unwrap_or_else(|_| (status, format!("{what}\n")).into_response())
    }
}
