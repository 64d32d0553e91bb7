//! What an authority says when it refuses (RFC 8555 §6.7).

use instant_acme::{Error, Problem};

/// What an authority says of a problem, without its last dot.
pub(super) fn words(problem: &Problem) -> String {
    let detail = problem
        .detail
        .as_deref()
        .or_else(|| problem.subproblems.iter().find_map(|p| p.detail.as_deref()))
        .or(problem.r#type.as_deref())
        .unwrap_or("it did not say why");
    detail.trim_end_matches('.').to_owned()
}

pub(super) fn is(problem: &Problem, word: &str) -> bool {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.rsplit(':').next() == Some(word)
}

pub(super) fn is_unknown_account(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if is(problem, "accountDoesNotExist"))
}
