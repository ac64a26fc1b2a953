//! canonical_json
