//! Failures as users see them: Ganeti's classes, codes and texts.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What kind of failure it is; decides the first line that a user sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Refused before anything was changed.
    #[serde(rename = "OpPrereqError")]
    Prerequisite,
    /// Failed on the way.
    #[serde(rename = "OpExecError")]
    Execution,
    /// The queue does not take the job.
    #[serde(rename = "JobQueueError")]
    Queue,
    /// There is no cluster here.
    #[serde(rename = "NotACluster")]
    NotACluster,
    /// No master can be reached, or it has no quorum.
    #[serde(rename = "NoMasterError")]
    NoMaster,
}

/// Ganeti's codes of refused requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// There is one already.
    AlreadyExists,
    /// Something on a node is not as it has to be.
    EnvironmentError,
    /// Not enough memory, disk or nodes.
    InsufficientResources,
    /// A defect of ours.
    InternalError,
    /// A name can't be resolved.
    ResolverError,
    /// Another object has it.
    ResourceNotUnique,
    /// Not enough at the moment.
    TempInsufficientResources,
    /// No such object.
    UnknownEntity,
    /// The request makes no sense.
    WrongInput,
    /// The object's state does not allow it.
    WrongState,
}

impl ErrorCode {
    /// The word in messages.
    pub fn word(self) -> &'static str {
        match self {
            ErrorCode::AlreadyExists => "already_exists",
            ErrorCode::EnvironmentError => "environment_error",
            ErrorCode::InsufficientResources => "insufficient_resources",
            ErrorCode::InternalError => "internal_error",
            ErrorCode::ResolverError => "resolver_error",
            ErrorCode::ResourceNotUnique => "resource_not_unique",
            ErrorCode::TempInsufficientResources => "temp_insufficient_resources",
            ErrorCode::UnknownEntity => "unknown_entity",
            ErrorCode::WrongInput => "wrong_input",
            ErrorCode::WrongState => "wrong_state",
        }
    }
}

/// A failure, for a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// Ganeti's code, for refusals.
    pub code: Option<ErrorCode>,
    /// What was wrong, with which object, and what to do.
    pub text: String,
}

impl Failure {
    /// A request that is refused before anything is changed.
    pub fn refused(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { kind: FailureKind::Prerequisite, code: Some(code), text: text.into() }
    }

    /// Refused: no such object; `kind` is `Instance`, `Node` and so on.
    pub fn unknown(kind: &str, name: impl fmt::Display) -> Self {
        Self::refused(ErrorCode::UnknownEntity, format!("{kind} '{name}' not known"))
    }

    /// A failure on the way.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { kind: FailureKind::Execution, code: None, text: text.into() }
    }

    /// No master, or no quorum.
    pub fn no_master(text: impl Into<String>) -> Self {
        Self { kind: FailureKind::NoMaster, code: None, text: text.into() }
    }

    /// No cluster on this node.
    pub fn not_a_cluster() -> Self {
        Self {
            kind: FailureKind::NotACluster,
            code: None,
            text:
                "This node is not part of a cluster yet; run 'gnt-cluster init' here, or 'gnt-node add' on the master"
                    .into(),
        }
    }

    /// As Ganeti writes an error into an opcode's result: `[class, [text, code]]`.
    pub fn to_result(&self) -> Value {
        match self.code {
            Some(code) => json!([self.kind, [self.text, code]]),
            None => json!([self.kind, [self.text]]),
        }
    }

    /// Reads what [`Self::to_result`] wrote. A text that stands alone is a failure on the way.
    pub fn from_result(result: &Value) -> Self {
        let parse = || {
            let kind = serde_json::from_value(result.get(0)?.clone()).ok()?;
            let details = result.get(1)?;
            let text = details.get(0)?.as_str()?.to_owned();
            let code = details.get(1).and_then(|code| serde_json::from_value(code.clone()).ok());
            Some(Self { kind, code, text })
        };
        parse()
            .unwrap_or_else(|| Self::failed(result.as_str().map_or_else(|| result.to_string(), |text| text.to_owned())))
    }

    /// Exit code of a command that ends with it (Ganeti's).
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            FailureKind::NotACluster => 5,
            _ => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.code) {
            (FailureKind::Prerequisite, Some(code)) => write!(
                f,
                "Failure: prerequisites not met for this operation:\nerror type: {}, error details:\n{}",
                code.word(),
                self.text
            ),
            (FailureKind::Prerequisite, None) => {
                write!(f, "Failure: prerequisites not met for this operation:\n{}", self.text)
            }
            (FailureKind::Execution, _) => {
                write!(f, "Failure: command execution error:\n{}", self.text)
            }
            (FailureKind::Queue, _) => write!(f, "Failure: job queue error: {}", self.text),
            (FailureKind::NotACluster | FailureKind::NoMaster, _) => f.write_str(&self.text),
        }
    }
}

impl std::error::Error for Failure {}

impl From<model::Rejection> for Failure {
    fn from(rejection: model::Rejection) -> Self {
        use model::Rejection as R;
        let text = rejection.to_string();
        match rejection {
            R::Unknown { .. } => Failure::refused(ErrorCode::UnknownEntity, text),
            R::Exists { .. } => Failure::refused(ErrorCode::AlreadyExists, text),
            R::State(_) | R::Disk(_) | R::AlreadyInitialised => Failure::refused(ErrorCode::WrongState, text),
            R::Invalid(_) => Failure::refused(ErrorCode::WrongInput, text),
            R::Queue(_) => Self { kind: FailureKind::Queue, code: None, text },
            R::NoCluster => Failure::not_a_cluster(),
            R::Incarnation { .. } | R::Office { .. } => Failure::no_master(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_a_result() {
        for failure in
            [Failure::unknown("Instance", "vm9"), Failure::failed("the disk is full"), Failure::no_master("no quorum")]
        {
            assert_eq!(Failure::from_result(&failure.to_result()), failure);
        }
        assert_eq!(Failure::from_result(&json!("just text")), Failure::failed("just text"));
    }
}
