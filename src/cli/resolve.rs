//! `kyc-worker resolve`: a person settles what no look could.

use std::process::ExitCode;

use super::{ResolveArgs, open_database, print};
use crate::journal::resolve::{Resolved, resolve};

pub(super) async fn run(args: &ResolveArgs) -> anyhow::Result<ExitCode> {
    let pool = open_database(&args.database).await?;
    let resolved = resolve(&pool, args.job_id, args.finding, args.signed.signed()).await?;
    print(args.json, &resolved, |Resolved { job_id, was, state, .. }| {
        println!("job {job_id} was {was}, and is {state} now");
        if *state == "exhausted" {
            println!("send it again with `kyc-worker replay {job_id} --yes --by NAME --note TEXT`");
        }
    })
}
