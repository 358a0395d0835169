//! Failures as HTTP answers.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use opcodes::{ErrorCode, Failure, FailureKind};

/// A failure with its status.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    /// A failure with a status of its own.
    pub(crate) fn new(status: StatusCode, failure: Failure) -> Self {
        Self { status, failure }
    }

    /// A request that can't be understood.
    pub(crate) fn not_understood(status: StatusCode, text: impl Into<String>) -> Self {
        Self::new(status, Failure::refused(ErrorCode::WrongInput, text))
    }

    /// The failure, for the log.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { status: status(&failure), failure }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.failure)).into_response()
    }
}

/// The status that fits a failure. What can be tried again as it is has 503.
fn status(failure: &Failure) -> StatusCode {
    match (failure.kind, failure.code) {
        (FailureKind::Prerequisite, Some(ErrorCode::UnknownEntity)) => StatusCode::NOT_FOUND,
        (FailureKind::Prerequisite, Some(ErrorCode::WrongInput | ErrorCode::ResolverError)) => StatusCode::BAD_REQUEST,
        (FailureKind::Prerequisite, Some(ErrorCode::InternalError)) => StatusCode::INTERNAL_SERVER_ERROR,
        (FailureKind::Prerequisite, Some(ErrorCode::TempInsufficientResources)) => StatusCode::SERVICE_UNAVAILABLE,
        (FailureKind::Prerequisite | FailureKind::NotACluster, _) => StatusCode::CONFLICT,
        (FailureKind::Execution, _) => StatusCode::INTERNAL_SERVER_ERROR,
        (FailureKind::Queue | FailureKind::NoMaster, _) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whose_turn_it_is() {
        for (failure, wanted) in [
            (Failure::unknown("Instance", "vm9"), 404),
            (Failure::refused(ErrorCode::WrongInput, ""), 400),
            (Failure::refused(ErrorCode::AlreadyExists, ""), 409),
            (Failure::refused(ErrorCode::WrongState, ""), 409),
            (Failure::not_a_cluster(), 409),
            (Failure::failed(""), 500),
            (Failure::no_master(""), 503),
        ] {
            assert_eq!(status(&failure).as_u16(), wanted, "{failure:?}");
        }
    }
}
