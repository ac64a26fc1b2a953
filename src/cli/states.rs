//! States as arguments.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::domain::state::State;

/// What reads one of the states that may be named.
pub(super) fn state_parser(may_be_named: fn(State) -> bool) -> impl TypedValueParser<Value = State> {
    let named = State::ALL.iter().copied().filter(move |state| may_be_named(*state));
    PossibleValuesParser::new(named.map(State::name)).try_map(|name| name.parse::<State>())
}
