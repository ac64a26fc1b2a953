//! A customer's updates as boxes: how many the provider allows, and what took each.

use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::desk::budget::{TakenUpdate, Updates, updates};

/// One of a customer's updates.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(in crate::console) struct UpdateBox {
    /// How it is drawn, and what programs read: spent, unsure or left.
    pub kind: &'static str,
    /// For people.
    pub text: String,
    /// The job that took it.
    pub job_id: Option<Uuid>,
}

/// The boxes of a customer; none of a job that named none.
pub(in crate::console) async fn boxes_of(
    pool: &PgPool,
    customer_id: Option<Uuid>,
    limit: u32,
) -> sqlx::Result<Vec<UpdateBox>> {
    let Some(customer_id) = customer_id else { return Ok(Vec::new()) };
    Ok(boxes(limit, &updates(pool, customer_id).await?))
}

/// The boxes of a customer whom the provider allows `limit` updates. What is spent beyond is shown, too.
pub(in crate::console) fn boxes(
    limit: u32,
    Updates { spent, taken, limit_reached_at }: &Updates,
) -> Vec<UpdateBox> {
    let of_attempt = |update: &TakenUpdate| UpdateBox {
        kind: if update.is_sure { "spent" } else { "unsure" },
        text: match update.is_sure {
            true => format!("spent by attempt {} of", update.attempt),
            false => format!("counts as spent: attempt {} may have taken it, of", update.attempt),
        },
        job_id: Some(update.job_id),
    };
    let mut boxes: Vec<UpdateBox> = taken.iter().map(of_attempt).collect();
    let more = |count: u32, kind, text: &'static str| {
        (0..count).map(move |_| UpdateBox { kind, text: text.to_owned(), job_id: None })
    };
    let named = u32::try_from(taken.len()).unwrap_or(u32::MAX);
    boxes.extend(more(
        spent.here.saturating_sub(named),
        "spent",
        "spent, or possibly spent, by an archived job",
    ));
    // Whatever a person says, it fits a page.
    boxes.extend(more(spent.elsewhere.min(limit), "spent", "spent elsewhere, as a person said"));
    let all = u32::try_from(boxes.len()).unwrap_or(u32::MAX);
    let left = limit.saturating_sub(all);
    match limit_reached_at {
        Some(_) => boxes.extend(more(left, "spent", "used up, says the provider")),
        None => boxes.extend(more(left, "left", "left")),
    }
    boxes
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use crate::desk::story::Spent;

    use super::*;

    #[test]
    fn each_update_has_a_box_and_none_is_hidden() {
        let update = |is_sure| TakenUpdate {
            job_id: Uuid::nil(),
            attempt: 1,
            at: OffsetDateTime::UNIX_EPOCH,
            is_sure,
        };
        let taken = [update(true), update(false)];
        let check = |limit, here, elsewhere, taken: &[TakenUpdate], expected: &[&str]| {
            let updates =
                Updates { spent: Spent { here, elsewhere }, taken: taken.to_vec(), limit_reached_at: None };
            let kinds: Vec<&str> = boxes(limit, &updates).iter().map(|each| each.kind).collect();
            assert_eq!(kinds, expected);
        };
        check(3, 0, 0, &[], &["left", "left", "left"]);
        check(3, 2, 0, &taken, &["spent", "unsure", "left"]);
        check(3, 3, 1, &taken, &["spent", "unsure", "spent", "spent"]);
        check(3, 1, 1, &[], &["spent", "spent", "left"]);
        check(3, 0, 900, &[], &["spent", "spent", "spent"]);
        let at = Some(OffsetDateTime::UNIX_EPOCH);
        let used_up = boxes(3, &Updates { limit_reached_at: at, ..Updates::default() });
        assert!(used_up.iter().all(|each| each.kind == "spent"), "nothing is left: {used_up:?}");
    }
}
