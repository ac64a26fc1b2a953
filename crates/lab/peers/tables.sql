-- What the peers write: an intent before the PATCH, an outcome after it, each with a commit.
create schema peer;
create table peer.intent (
    job_id uuid primary key,
    customer_id uuid not null,
    signed_at timestamptz not null,
    begun_at timestamptz not null default now()
);
create table peer.outcome (
    job_id uuid primary key,
    state text not null,
    http_status integer not null,
    message text,
    ended_at timestamptz not null default now()
);
