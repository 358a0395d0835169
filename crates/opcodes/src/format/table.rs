//! Tables, as Ganeti's `list` commands write them.

use jiff::tz::TimeZone;
use model::Timestamp;
use serde_json::Value;

use super::{Units, date_time, date_time_micros, size, text};
use crate::wire::{Cell, CellState, Field, FieldKind, Table};

/// How a table is written.
#[derive(Clone, Debug)]
pub struct TableOptions {
    /// Begin with the titles of the columns.
    pub headers: bool,
    /// Put this between columns instead of aligning them.
    pub separator: Option<String>,
    /// How sizes are written. `None`: as people read them, or in MiB where there is a separator.
    pub units: Option<Units>,
    /// Write `(nodata)` instead of `?` and so on.
    pub verbose: bool,
    /// Zone of times.
    pub zone: TimeZone,
}

impl TableOptions {
    fn units(&self) -> Units {
        self.units.unwrap_or(match self.separator {
            Some(_) => Units::Mebibytes,
            None => Units::Human,
        })
    }
}

/// Names of the columns that the cluster does not know, in the order asked.
pub fn unknown_fields(table: &Table) -> Vec<&str> {
    table.fields.iter().filter(|field| field.kind == FieldKind::Unknown).map(|field| field.name.as_str()).collect()
}

/// A cell as text.
pub fn cell(cell: &Cell, field: &Field, options: &TableOptions) -> String {
    let (short, long) = match cell.state() {
        CellState::Normal => return normal(&cell.1, field, options),
        CellState::Unknown => ("??", "(unknown)"),
        CellState::NoData => ("?", "(nodata)"),
        CellState::Unavailable => ("-", "(unavail)"),
        CellState::Offline => ("*", "(offline)"),
    };
    if options.verbose { long.into() } else { short.into() }
}

fn normal(value: &Value, field: &Field, options: &TableOptions) -> String {
    match (field.kind, value) {
        (FieldKind::Bool, Value::Bool(true)) => "Y".into(),
        (FieldKind::Bool, Value::Bool(false)) => "N".into(),
        (FieldKind::Unit, Value::Number(mib)) => size(mib.as_f64().unwrap_or_default(), options.units()),
        (FieldKind::Timestamp, Value::Number(seconds)) => {
            // Below a microsecond a float of this size has no meaning.
            let at = Timestamp((seconds.as_f64().unwrap_or_default() * 1e6).round() as u64);
            // Ganeti writes times of jobs with their microseconds and those of objects without.
            if field.name.ends_with("_ts") { date_time_micros(at, &options.zone) } else { date_time(at, &options.zone) }
        }
        (_, value) => text::value(value),
    }
}

/// Writes a table; each line ends with a line break.
///
/// Numbers and sizes are aligned to the right, all else to the left; a last column that is aligned to the left is not
/// padded.
pub fn table(table: &Table, options: &TableOptions) -> String {
    let mut rows: Vec<Vec<String>> = Vec::with_capacity(table.data.len() + 1);
    if options.headers {
        rows.push(table.fields.iter().map(|field| field.title.clone()).collect());
    }
    rows.extend(
        table
            .data
            .iter()
            .map(|row| row.iter().zip(&table.fields).map(|(value, field)| cell(value, field, options)).collect()),
    );
    let mut out = String::new();
    if let Some(separator) = &options.separator {
        for row in rows {
            out.push_str(&row.join(separator));
            out.push('\n');
        }
        return out;
    }
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max();
    let widths: Vec<usize> = (0..table.fields.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        for (column, text) in row.iter().enumerate() {
            if column > 0 {
                out.push(' ');
            }
            let pad = widths[column].saturating_sub(text.chars().count());
            let numeric = matches!(table.fields[column].kind, FieldKind::Number | FieldKind::Unit);
            if numeric {
                out.extend(std::iter::repeat_n(' ', pad));
            }
            out.push_str(text);
            if !numeric && column + 1 < table.fields.len() {
                out.extend(std::iter::repeat_n(' ', pad));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields;
    use crate::wire::Resource;
    use serde_json::json;

    fn options() -> TableOptions {
        TableOptions { headers: true, separator: None, units: None, verbose: false, zone: TimeZone::UTC }
    }

    fn columns(what: Resource, names: &[&str]) -> Vec<Field> {
        names.iter().map(|name| fields::column(what, name)).collect()
    }

    fn instances() -> Table {
        let row = |name: &str, node: &str, status: &str, memory: Cell| {
            let text = |text: &str| Cell::value(text);
            vec![text(name), text("kvm"), text("busybox+default"), text(node), text(status), memory]
        };
        Table {
            fields: columns(Resource::Instance, &["name", "hypervisor", "os", "pnode", "status", "oper_ram"]),
            data: vec![
                row("vm1", "node01", "running", Cell::value(512)),
                row("vm2.example.com", "node01", "ADMIN_down", Cell::empty(CellState::Unavailable)),
                row("vm3", "node2", "ERROR_nodedown", Cell::empty(CellState::NoData)),
                row("vm4", "node2", "ERROR_nodeoffline", Cell::empty(CellState::Offline)),
            ],
        }
    }

    #[test]
    fn a_list_of_instances_looks_as_in_ganeti() {
        assert_eq!(
            table(&instances(), &options()),
            "\
Instance        Hypervisor OS              Primary_node Status            Memory
vm1             kvm        busybox+default node01       running             512M
vm2.example.com kvm        busybox+default node01       ADMIN_down             -
vm3             kvm        busybox+default node2        ERROR_nodedown         ?
vm4             kvm        busybox+default node2        ERROR_nodeoffline      *
"
        );
        let verbose = TableOptions { verbose: true, headers: false, ..options() };
        assert!(table(&instances(), &verbose).contains("ADMIN_down        (unavail)\n"));
        let plain = TableOptions { separator: Some(":".into()), headers: false, ..options() };
        assert!(table(&instances(), &plain).starts_with("vm1:kvm:busybox+default:node01:running:512\n"));
    }

    #[test]
    fn the_last_column_is_not_padded_and_numbers_stand_to_the_right() {
        let jobs = Table {
            fields: columns(Resource::Job, &["id", "status", "summary"]),
            data: vec![
                vec![Cell::value(1), Cell::value("success"), Cell::value(json!(["CLUSTER_VERIFY"]))],
                vec![Cell::value(103), Cell::value("error"), Cell::value(json!(["NODE_ADD(a)", "NODE_ADD(b)"]))],
            ],
        };
        assert_eq!(
            table(&jobs, &options()),
            " ID Status  Summary\n  1 success CLUSTER_VERIFY\n103 error   NODE_ADD(a),NODE_ADD(b)\n"
        );
    }

    #[test]
    fn an_unknown_column_is_named() {
        let asked = Table {
            fields: columns(Resource::Instance, &["nosuchfield"]),
            data: vec![vec![Cell::empty(CellState::Unknown)]],
        };
        assert_eq!(unknown_fields(&asked), ["nosuchfield"]);
        assert_eq!(table(&asked, &options()), "nosuchfield\n??\n");
        assert_eq!(table(&asked, &TableOptions { verbose: true, ..options() }), "nosuchfield\n(unknown)\n");
    }

    #[test]
    fn truth_values_times_and_lists() {
        let node = Table {
            fields: columns(Resource::Node, &["master", "ctime", "pinst_list"]),
            data: vec![vec![Cell::value(true), Cell::value(1700000000.25), Cell::value(json!(["a", "b"]))]],
        };
        assert_eq!(table(&node, &TableOptions { headers: false, ..options() }), "Y 2023-11-14 22:13:20 a,b\n");
        let job = Table { fields: columns(Resource::Job, &["start_ts"]), data: vec![vec![Cell::value(1700000000.25)]] };
        assert_eq!(table(&job, &options()), "Start\n2023-11-14 22:13:20.250000\n");
    }

    #[test]
    fn a_row_that_is_too_short_does_no_harm() {
        let mut instances = instances();
        instances.data[0].truncate(2);
        assert!(table(&instances, &options()).contains("vm1             kvm"));
    }
}
