//! What the worker's statements cost the database, and how they are planned: Postgres'
//! `auto_explain` tells it to the connection that asked, and the client logs it as a warning.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sqlx::PgPool;
use url::Url;

use crate::figures::{Statement, tenths};

/// Tables that grow with every job.
const GROWING: [&str; 4] = ["attempt", "customer", "observation", "submission"];

/// No statement of the worker's has to read so many rows in one place: a batch has 512 jobs.
const ROWS_READ_MAX: u64 = 10_000;

/// The same database, but every statement's plan is told, and is made as for `role`, where that is given. Needs
/// a superuser.
pub fn explained(url: &Url, role: Option<&str>) -> Url {
    let plans = [
        "session_preload_libraries=auto_explain",
        "auto_explain.log_min_duration=0",
        "auto_explain.log_analyze=on",
        "auto_explain.log_timing=off",
        "auto_explain.log_format=json",
        "auto_explain.log_level=warning",
    ];
    let mut options = plans.map(|option| format!("-c {option}")).join(" ");
    if let Some(role) = role {
        options += &format!(" -c role={role}");
    }
    let mut url = url.clone();
    url.query_pairs_mut().append_pair("options", &options);
    url
}

#[derive(Default)]
struct Seen {
    calls: u64,
    total_ms: f64,
    max_ms: f64,
    rows_read: u64,
    plan: String,
    reads_whole: BTreeSet<String>,
    /// The most rows of one table, where they are too many.
    reads_many: BTreeMap<String, u64>,
}

/// Whether plans can be asked for.
///
/// # Errors
/// When the user of `DATABASE_URL` may not load the module.
pub async fn check_superuser(pool: &PgPool) -> anyhow::Result<()> {
    let is_superuser: bool =
        sqlx::query_scalar("select current_setting('is_superuser')::boolean").fetch_one(pool).await?;
    ensure!(is_superuser, "DATABASE_URL: its user must be a superuser, to see plans by auto_explain");
    Ok(())
}

/// Reads the plans out of a program's log.
pub fn read_log(path: &Path) -> anyhow::Result<Vec<Statement>> {
    let log = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let statements = read(&log);
    ensure!(!statements.is_empty(), "auto_explain told no plans; is the module installed?");
    Ok(statements)
}

/// Reads the plans out of a log of JSON lines.
pub fn read(log: &str) -> Vec<Statement> {
    let mut statements: BTreeMap<String, Seen> = BTreeMap::new();
    for line in log.lines() {
        if let Some((name, duration_ms, plan)) = parse(line) {
            statements.entry(name).or_default().note(duration_ms, &plan);
        }
    }
    let statement = |(name, seen): (String, Seen)| Statement {
        name,
        calls: seen.calls,
        mean_ms: micros(seen.total_ms / seen.calls as f64),
        max_ms: tenths(seen.max_ms),
        rows_read: seen.rows_read,
        faults: seen.faults(),
        plan: seen.plan,
    };
    statements.into_iter().map(statement).collect()
}

/// As exactly as Postgres tells it.
fn micros(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

/// The statement's name, how long it took, and its plan.
fn parse(line: &str) -> Option<(String, f64, Value)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let message = line.get("message")?.as_str()?.strip_prefix("duration: ")?;
    let (duration, plan) = message.split_once(" ms  plan:")?;
    let plan: Value = serde_json::from_str(plan).ok()?;
    let text = plan.get("Query Text")?.as_str()?;
    // Every statement of ours begins with its name.
    let name = text.strip_prefix("-- ")?.lines().next()?.trim().to_owned();
    Some((name, duration.parse().ok()?, plan.get("Plan")?.clone()))
}

impl Seen {
    fn faults(&self) -> Vec<String> {
        let whole = self.reads_whole.iter().map(|relation| format!("reads all of {relation}"));
        let many = self.reads_many.iter().map(|(relation, rows)| format!("reads {rows} rows of {relation}"));
        whole.chain(many).collect()
    }

    fn note(&mut self, duration_ms: f64, plan: &Value) {
        self.calls += 1;
        self.total_ms += duration_ms;
        let mut nodes = Vec::new();
        walk(plan, &mut nodes);
        for node in &nodes {
            self.rows_read = self.rows_read.max(node.rows_read);
            if node.kind == "Seq Scan" && GROWING.contains(&node.relation.as_str()) {
                self.reads_whole.insert(node.relation.clone());
            } else if node.rows_read > ROWS_READ_MAX {
                let most = self.reads_many.entry(node.relation.clone()).or_default();
                *most = node.rows_read.max(*most);
            }
        }
        if duration_ms >= self.max_ms {
            self.max_ms = duration_ms;
            let mut steps: Vec<String> = Vec::new();
            for step in nodes.iter().map(Node::to_string) {
                if !steps.contains(&step) {
                    steps.push(step);
                }
            }
            self.plan = steps.join(", ");
        }
    }
}

/// A place where a plan touches a table.
struct Node {
    kind: String,
    relation: String,
    index: Option<String>,
    rows_read: u64,
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.index {
            Some(index) => write!(f, "{index}"),
            None => write!(f, "{} {}", self.kind.to_lowercase(), self.relation),
        }
    }
}

fn walk(plan: &Value, nodes: &mut Vec<Node>) {
    let text = |key: &str| plan.get(key).and_then(Value::as_str).map(str::to_owned);
    let number = |key: &str| plan.get(key).and_then(Value::as_f64).unwrap_or_default();
    let kind = text("Node Type").unwrap_or_default();
    let rows_per_loop =
        number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Index Recheck");
    let rows_read = (rows_per_loop * number("Actual Loops")) as u64;
    match (text("Relation Name"), text("Index Name")) {
        (Some(relation), index) => {
            let kind = text("Operation").unwrap_or(kind);
            let is_write = ["Insert", "Update", "Delete"].contains(&kind.as_str());
            nodes.push(Node { kind, relation, index, rows_read: if is_write { 0 } else { rows_read } });
        }
        // A bitmap's index, whose table is the node above.
        (None, Some(index)) => {
            nodes.push(Node { kind, relation: index.clone(), index: Some(index), rows_read })
        }
        (None, None) => {}
    }
    for below in plan.get("Plans").and_then(Value::as_array).into_iter().flatten() {
        walk(below, nodes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(duration: &str, plan: &Value) -> String {
        let plan = json!({ "Query Text": "-- look\nselect 1", "Plan": plan });
        json!({ "level": "WARN", "message": format!("duration: {duration} ms  plan:\n{plan}") }).to_string()
    }

    #[test]
    fn a_statement_is_summed_up_with_its_slowest_plan() {
        let by_index = json!({
            "Node Type": "Nested Loop", "Actual Rows": 3, "Actual Loops": 1,
            "Plans": [{
                "Node Type": "Index Scan", "Relation Name": "submission", "Index Name": "submission_pkey",
                "Actual Rows": 1, "Actual Loops": 3,
            }],
        });
        let log = format!("{}\n{}\nnot JSON\n{{}}\n", line("0.500", &by_index), line("1.500", &by_index));
        let expected = Statement {
            name: "look".to_owned(),
            calls: 2,
            mean_ms: 1.0,
            max_ms: 1.5,
            rows_read: 3,
            plan: "submission_pkey".to_owned(),
            faults: Vec::new(),
        };
        assert_eq!(read(&log), [expected]);
    }

    #[test]
    fn a_plan_that_grows_dearer_with_the_tables_is_flagged() {
        let scan = |kind: &str, relation: &str, removed: u64| {
            json!({
                "Node Type": kind, "Relation Name": relation,
                "Actual Rows": 1, "Actual Loops": 1, "Rows Removed by Filter": removed,
            })
        };
        let faults = |plan: &Value| read(&line("1", plan))[0].faults.clone();
        assert_eq!(faults(&scan("Seq Scan", "attempt", 5)), ["reads all of attempt"]);
        assert_eq!(faults(&scan("Seq Scan", "worker", 5)), [""; 0]);
        assert_eq!(faults(&scan("Index Scan", "submission", 50_000)), ["reads 50001 rows of submission"]);
        assert_eq!(faults(&scan("Index Scan", "submission", 500)), [""; 0]);
    }

    #[test]
    fn the_options_are_one_parameter_of_the_url() {
        let url =
            explained(&"postgres://postgres@127.0.0.1:5432/kyc_bench".parse().unwrap(), Some("kyc_desk"));
        let (key, value) = url.query_pairs().next().unwrap();
        assert_eq!(key, "options");
        assert!(value.starts_with("-c session_preload_libraries=auto_explain -c "), "{value}");
        assert!(value.ends_with(" -c role=kyc_desk"), "{value}");
    }
}
