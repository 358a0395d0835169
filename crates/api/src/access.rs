//! Who may ask what, and how it is called in the log.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use opcodes::wire::Request;
use opcodes::{ErrorCode, Failure};
use serde_json::{Value, json};

use crate::refusal::Refusal;

/// Who asks. Put into a request's extensions by whoever has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name for jobs and for the log: `root`, `uid:1000`.
    pub name: String,
    /// Whether they may change anything, or only look.
    pub may_change: bool,
}

impl Caller {
    /// A caller who may do this.
    pub(crate) fn permit(&self, what: &str, changes: bool) -> Result<(), Refusal> {
        if self.may_change || !changes {
            return Ok(());
        }
        let text = format!("User '{}' may look but not change anything ({what}); run this as root", self.name);
        Err(Refusal::new(StatusCode::FORBIDDEN, Failure::refused(ErrorCode::WrongState, text)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| {
            let text = "It is not known who asks; authenticate first";
            Refusal::new(StatusCode::UNAUTHORIZED, Failure::refused(ErrorCode::WrongState, text))
        })
    }
}

/// Whether a request changes anything. What is not known to be harmless counts as a change.
pub(crate) fn changes(request: &Request) -> bool {
    match request {
        Request::Status
        | Request::Job { .. }
        | Request::Query(_)
        | Request::ClusterInfo
        | Request::NodeInfo { .. }
        | Request::InstanceInfo { .. }
        | Request::Disks { .. }
        | Request::Why { .. }
        | Request::HaBound
        | Request::HaPlan { .. }
        | Request::HaStatus => false,
        Request::Init(_)
        | Request::Join(_)
        | Request::Destroy
        | Request::MasterFailover
        | Request::Recover { .. }
        | Request::HaSwitch { .. }
        | Request::Submit(_)
        | Request::CancelJob { .. }
        | Request::ArchiveJob { .. } => true,
    }
}

/// A request in a few words, for the log. Has nothing of what must stay secret, such as a join token.
pub(crate) fn describe(request: &Request) -> String {
    match request {
        Request::Status => "status".into(),
        Request::Init(init) => format!("init {}", init.cluster_name),
        Request::Join(join) => format!("join {}", join.address),
        Request::Destroy => "destroy".into(),
        Request::MasterFailover => "master-failover".into(),
        Request::Submit(submit) => {
            let ops: Vec<_> = submit.ops.iter().map(opcodes::Opcode::summary).collect();
            format!("submit {}", ops.join(", "))
        }
        Request::Job { id, .. } => format!("job {id}"),
        Request::CancelJob { id } => format!("cancel job {id}"),
        Request::ArchiveJob { id } => format!("archive job {id}"),
        Request::Query(query) => format!("query {:?}", query.what).to_lowercase(),
        Request::ClusterInfo => "cluster info".into(),
        Request::NodeInfo { .. } => "node info".into(),
        Request::InstanceInfo { .. } => "instance info".into(),
        Request::Disks { .. } => "disks".into(),
        Request::Recover { off, commit } => {
            let without = if off.is_empty() { String::new() } else { format!(" without {}", off.join(", ")) };
            format!("{}{without}", if *commit { "recover" } else { "look at recovering" })
        }
        Request::Why { name } => format!("why {name}"),
        Request::HaBound => "ha bound".into(),
        Request::HaPlan { .. } => "ha plan".into(),
        Request::HaStatus => "ha status".into(),
        Request::HaSwitch { on } => format!("ha {}", if *on { "arm" } else { "disarm" }),
    }
}

/// Takes out of a reply what only those may see who may change things: the steps and lines of a job that adds a node have the
/// token in them, with which a machine could be joined.
pub(crate) fn conceal(request: &Request, reply: &mut Value) {
    let (Request::Job { .. }, Some(ops)) = (request, reply.get_mut("ops").and_then(Value::as_array_mut)) else {
        return;
    };
    for op in ops.iter_mut().filter(|op| op["input"]["OP_ID"] == "OP_NODE_ADD") {
        op["log"] = json!([]);
        op["steps"] = json!({});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::JobId;
    use opcodes::Opcode;
    use opcodes::wire::{Join, Query, Resource, Submit};

    fn submit(ops: Vec<Opcode>) -> Request {
        Request::Submit(Submit { ops, priority: 0, depends: Vec::new() })
    }

    #[test]
    fn who_may_look_may_do_nothing_else() {
        let id = JobId(1);
        let join = Join { address: "10.0.0.5".into(), token: "secret".into() };
        let query = Query { what: Resource::Instance, fields: Vec::new(), names: None };
        for (request, changing) in [
            (Request::Status, false),
            (Request::Job { id, after: 0, status: None, wait: 0 }, false),
            (Request::Query(query), false),
            (Request::ClusterInfo, false),
            (Request::NodeInfo { names: Vec::new() }, false),
            (Request::InstanceInfo { names: Vec::new(), is_static: true }, false),
            (Request::Join(join), true),
            (Request::Destroy, true),
            (Request::MasterFailover, true),
            (submit(Vec::new()), true),
            (Request::CancelJob { id }, true),
            (Request::ArchiveJob { id }, true),
        ] {
            assert_eq!(changes(&request), changing, "{request:?}");
            let reader = Caller { name: "uid:1000".into(), may_change: false };
            assert_eq!(reader.permit("it", changes(&request)).is_ok(), !changing, "{request:?}");
            let root = Caller { name: "root".into(), may_change: true };
            assert!(root.permit("it", changes(&request)).is_ok());
        }
    }

    #[test]
    fn the_log_says_what_was_asked_and_keeps_secrets() {
        let join = Request::Join(Join { address: "10.0.0.5".into(), token: "secret".into() });
        assert_eq!(describe(&join), "join 10.0.0.5");
        let op = Opcode::NodeRemove { node_name: "node02".into() };
        assert_eq!(describe(&submit(vec![op.clone(), op])), "submit NODE_REMOVE(node02), NODE_REMOVE(node02)");
    }

    #[test]
    fn readers_of_jobs_see_no_join_token() {
        let request = Request::Job { id: JobId(1), after: 0, status: None, wait: 0 };
        let op = |id| json!({"input": {"OP_ID": id}, "log": ["word"], "steps": {"plan": "word"}, "status": "running"});
        let mut reply = json!({"ops": [op("OP_NODE_ADD"), op("OP_TEST_DELAY")]});
        conceal(&request, &mut reply);
        assert_eq!(reply["ops"][1], op("OP_TEST_DELAY"));
        assert_eq!(
            reply["ops"][0],
            json!({"input": {"OP_ID": "OP_NODE_ADD"}, "log": [], "steps": {}, "status": "running"})
        );
    }
}
