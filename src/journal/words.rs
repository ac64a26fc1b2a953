//! The schema's words as columns, and other texts of ours: one that cannot be read is an error of the
//! statement that reads it.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Type};

use crate::domain::state::{ConclusionKind, EventKind, Evidence, LinkField, Purpose, State, VerdictKind};
use crate::domain::trace_context::TraceContext;

macro_rules! read_as_text {
    ($($word:ty),+) => {$(
        impl Type<Postgres> for $word {
            fn type_info() -> PgTypeInfo {
                <str as Type<Postgres>>::type_info()
            }

            fn compatible(ty: &PgTypeInfo) -> bool {
                <str as Type<Postgres>>::compatible(ty)
            }
        }

        impl<'r> Decode<'r, Postgres> for $word {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                Ok(<&str as Decode<Postgres>>::decode(value)?.parse()?)
            }
        }
    )+};
}

read_as_text!(ConclusionKind, EventKind, Evidence, LinkField, Purpose, State, TraceContext, VerdictKind);
