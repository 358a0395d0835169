//! Jobs.

use model::{Job, Op, State, Timestamp};
use opcodes::wire::{Cell, CellState, timestamp};

use super::{list, optional};

/// All jobs, by number.
pub fn all(state: &State) -> Vec<(String, &Job)> {
    state.jobs.values().map(|job| (job.id.to_string(), job)).collect()
}

/// One cell.
pub fn cell(job: &Job, field: &str) -> Cell {
    let time = |at: Option<Timestamp>| optional(at.map(timestamp));
    let ops = |value: fn(&Op) -> serde_json::Value| list(job.ops.iter().map(value));
    match field {
        "id" => Cell::value(job.id.0),
        "status" => Cell::value(job.status.word()),
        "summary" => ops(|op| op.summary.as_str().into()),
        "priority" => Cell::value(job.priority),
        "user" => Cell::value(job.user.as_str()),
        "received_ts" => time(Some(job.received)),
        "start_ts" => time(job.start),
        "end_ts" => time(job.end),
        "ops" => ops(|op| op.input.clone()),
        "opstatus" => ops(|op| op.status.word().into()),
        "opresult" => ops(|op| op.result.clone()),
        _ => Cell::empty(CellState::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Live, table, testing};
    use super::*;
    use opcodes::Failure;
    use opcodes::wire::{Query, Resource};
    use serde_json::json;

    fn list_of(fields: &[&str], names: Option<&[&str]>) -> Result<Vec<Vec<Cell>>, Failure> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let query = Query { what: Resource::Job, fields: owned(fields), names: names.map(owned) };
        table(&testing::cluster(), &Live::default(), &query).map(|table| table.data)
    }

    #[test]
    fn jobs_are_listed_by_number_with_a_summary_of_each_opcode() {
        let rows = list_of(&["id", "status", "summary", "end_ts"], None).unwrap();
        assert_eq!(rows.len(), 12);
        let last = Cell::value(json!(["TEST_DELAY(0)", "TEST_DELAY(1)"]));
        assert_eq!(rows[11], [Cell::value(12), Cell::value("queued"), last, Cell::empty(CellState::Unavailable)]);
        assert_eq!(rows[1][0], Cell::value(2));
    }

    #[test]
    fn a_job_is_named_by_its_number() {
        let ids = |names| Ok::<_, Failure>(list_of(&["id"], Some(names))?.into_iter().flatten().collect::<Vec<_>>());
        assert_eq!(ids(&["11", "2"]), Ok(vec![Cell::value(11), Cell::value(2)]));
        assert_eq!(ids(&["99"]), Err(Failure::unknown("Job", "99")));
        assert_eq!(ids(&["x"]), Err(Failure::unknown("Job", "x")));
    }
}
