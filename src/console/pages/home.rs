//! `/`: who works, what waits for somebody, and what came of the last day. Nothing is counted for it: replicas
//! have read the figures for all.

use askama::Template;
use axum::response::Response;
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::console::answer::{Failure, Page};
use crate::console::visit::{Frame, Visit, span};
use crate::desk::figures::{Home, HourOfEnds, home};
use crate::desk::proposals;
use crate::domain::permission::Permission;
use crate::domain::state::State;
use crate::journal::fleet::Figure;

#[derive(Template, Serialize)]
#[template(path = "home.html")]
struct HomePage {
    #[serde(skip)]
    frame: Frame,
    #[serde(flatten)]
    home: Home,
    /// What waits, with the oldest of it.
    queues: Vec<Waiting>,
    #[serde(skip)]
    bars: Bars,
    may_pause: bool,
}

impl Page for HomePage {
    const TABLES: &'static [(&'static str, &'static str)] =
        &[("queues", "/queues"), ("replicas", "/workers"), ("hours", "/hours"), ("errors", "/last_errors")];
}

/// What waits, and for whom.
#[derive(Debug, Serialize)]
struct Waiting {
    what: String,
    count: f64,
    /// How long the oldest waits, in seconds.
    oldest_seconds: Option<f64>,
    /// The page that lists it.
    path: Option<String>,
    /// Whether a person must act.
    needs_person: bool,
}

impl Waiting {
    fn oldest(&self) -> String {
        self.oldest_seconds.map(span).unwrap_or_default()
    }
}

pub(in crate::console) async fn show(visit: Visit) -> Result<Response, Failure> {
    let home = home(&visit.console.pages).await?;
    let (proposals, oldest) = proposals::waiting(&visit.console.pages).await?;
    let mut queues = waiting(&home.figures);
    if proposals > 0 {
        #[expect(clippy::cast_precision_loss, reason = "few")]
        queues.insert(
            0,
            Waiting {
                what: "proposals wait for a second person".to_owned(),
                count: proposals as f64,
                oldest_seconds: oldest.map(|at| (visit.standing().now - at).as_seconds_f64()),
                path: Some("/proposals".to_owned()),
                needs_person: true,
            },
        );
    }
    let page = HomePage {
        frame: visit.frame("/", "Now"),
        queues,
        bars: Bars::of(&home.hours, visit.standing().now),
        may_pause: visit.visitor.may(Permission::Pause),
        home,
    };
    visit.page(&page)
}

/// What the figures say of what waits.
fn waiting(figures: &[Figure]) -> Vec<Waiting> {
    let value = |figure: &str, part: &str| {
        figures.iter().find(|each| each.figure == figure && each.part == part).map(|each| each.value)
    };
    let parts = |figure: &'static str| figures.iter().filter(move |each| each.figure == figure);
    let open = |part: &str, what: &str, path: Option<&str>, needs_person| {
        let count = value("open_jobs", part).unwrap_or_default();
        Waiting {
            what: what.to_owned(),
            count,
            oldest_seconds: value("oldest_open_seconds", part).filter(|_| count > 0.0),
            path: path.map(str::to_owned),
            needs_person,
        }
    };
    let mut waiting = vec![open(State::NeedsReview.name(), "wait for a reviewer", Some("/review"), true)];
    waiting.extend(parts("waiting_for_person").map(|each| Waiting {
        what: format!("… for {}", each.part),
        count: each.value,
        oldest_seconds: None,
        path: Some(format!("/review?reason={}", each.part)),
        needs_person: true,
    }));
    waiting.extend([
        open(State::Submitting.name(), "are being sent", None, false),
        open("waiting_retry", "wait to be sent, or sent again", None, false),
        open("waiting_customer", "wait for another job of their customer", None, false),
        open("waiting_provider", "wait for the provider", None, false),
        open(State::Unknown.name(), "were sent, and are read back", None, false),
    ]);
    let count = |figure: &str, what: &str, path: Option<&str>, oldest: Option<f64>, needs_person| Waiting {
        what: what.to_owned(),
        count: value(figure, "").unwrap_or_default(),
        oldest_seconds: oldest,
        path: path.map(str::to_owned),
        needs_person,
    };
    let late = value("verification_reads_late_seconds", "").filter(|late| *late > 0.0);
    waiting.extend([
        count("late_jobs", "are late: no replica takes them up", None, None, true),
        count("verifications_overdue", "verifications are overdue", Some("/verifications"), None, true),
        count("verifications_running", "verifications run", Some("/verifications"), late, false),
        count(
            "events_waiting",
            "events wait to be published",
            None,
            value("oldest_event_seconds", ""),
            false,
        ),
    ]);
    waiting.extend(parts("dead_lettered_day").map(|each| Waiting {
        what: format!("dead letters of the last day, {}", each.part),
        count: each.value,
        oldest_seconds: None,
        path: Some("/dead-letters".to_owned()),
        needs_person: true,
    }));
    waiting.retain(|each| each.count > 0.0 || each.needs_person && each.path.as_deref() == Some("/review"));
    waiting
}

/// The last 24 hours as a chart: a bar an hour, its parts by how the jobs ended.
#[derive(Default)]
struct Bars {
    parts: Vec<Part>,
    /// The most that ended in an hour.
    most: i64,
}

/// A part of a bar, in units of the chart.
struct Part {
    x: i64,
    y: i64,
    height: i64,
    class: &'static str,
}

/// How wide and high the chart is, in its own units.
const HOURS: i64 = 25;
const BAR: i64 = 12;
const HEIGHT: i64 = 100;

impl Bars {
    fn of(hours: &[HourOfEnds], now: OffsetDateTime) -> Self {
        let hours_ago = |hour: OffsetDateTime| (now - hour).whole_hours().clamp(0, HOURS - 1);
        let mut totals = [0_i64; HOURS as usize];
        let place = |ago: i64| usize::try_from(ago).unwrap_or_default();
        for each in hours {
            totals[place(hours_ago(each.hour))] += each.jobs;
        }
        let most = totals.iter().copied().max().unwrap_or_default();
        let mut parts = Vec::new();
        let mut below = [0_i64; HOURS as usize];
        for class in ["good", "quiet", "bad", "warn"] {
            for each in hours.iter().filter(|each| class_of(&each.state) == class) {
                let ago = hours_ago(each.hour);
                let height = if most == 0 { 0 } else { (each.jobs * HEIGHT).div_euclid(most).max(1) };
                let at = &mut below[place(ago)];
                *at += height;
                parts.push(Part { x: (HOURS - 1 - ago) * BAR, y: HEIGHT - *at, height, class });
            }
        }
        Self { parts, most }
    }
}

/// How an end is drawn: what went well, what cost nothing, what went wrong, what waits for a person.
fn class_of(state: &str) -> &'static str {
    match state.parse() {
        Ok(State::Accepted) => "good",
        Ok(State::Superseded | State::Duplicate) => "quiet",
        Ok(State::NeedsReview) => "warn",
        _ => "bad",
    }
}

/// Whether figures are too old to go by: a replica reads them every quarter of a minute, or more seldom where
/// that takes long.
const FRESH: Duration = Duration::minutes(5);

impl HomePage {
    fn is_stale(&self) -> bool {
        self.frame.standing.now - self.home.read_at > FRESH
    }

    fn width(&self) -> i64 {
        HOURS * BAR
    }
}
