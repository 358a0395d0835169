//! Lists of objects, and of their columns.

use jiff::tz::TimeZone;
use opcodes::fields;
use opcodes::format::{TableOptions, table, tree, unknown_fields};
use opcodes::wire::{Cell, CellState, Field, FieldKind, Query, Request, Resource, Table, Tree};
use serde_json::{Map, Value};

use crate::error::{EXIT_UNKNOWN_FIELD, Error};
use crate::options::{ListOptions, TableArgs};
use crate::session::Session;

/// The columns that `-o` asks for.
pub(crate) fn columns(what: Resource, output: Option<&str>) -> Vec<String> {
    let divide = |text: &str| text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let usual = || fields::defaults(what).iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    match output {
        None => usual(),
        Some(more) if more.starts_with('+') => usual().into_iter().chain(divide(&more[1..])).collect(),
        Some(names) => divide(names),
    }
}

/// Names that were given to a list; none: all objects.
pub(crate) fn names(names: Vec<String>) -> Option<Vec<String>> {
    (!names.is_empty()).then_some(names)
}

/// Asks for a table.
pub(crate) async fn query(
    session: &Session,
    what: Resource,
    fields: Vec<String>,
    names: Option<Vec<String>>,
) -> Result<Table, Error> {
    Ok(session.client.call(&Request::Query(Query { what, fields, names })).await?)
}

/// Lists objects. Exit code 14 if a column is unknown.
pub(crate) async fn list(
    session: &mut Session,
    what: Resource,
    given: Vec<String>,
    options: &ListOptions,
) -> Result<u8, Error> {
    let table = query(session, what, columns(what, options.output.as_deref()), names(given)).await?;
    show(session, &table, options)
}

/// Writes a table as the options say.
pub(crate) fn show(session: &mut Session, asked: &Table, options: &ListOptions) -> Result<u8, Error> {
    let unknown = unknown_fields(asked).join(", ");
    if !unknown.is_empty() {
        session.warn(format_args!("Warning: Queried for unknown fields {unknown}"));
    }
    if options.table.json {
        session.json(&objects(asked))?;
    } else {
        // Reading the zone takes time; most lists show none.
        let has_times = asked.fields.iter().any(|field| field.kind == FieldKind::Timestamp);
        let zone = if has_times { session.zone() } else { TimeZone::UTC };
        let options = TableOptions {
            headers: !options.table.no_headers,
            separator: options.table.separator.clone(),
            units: options.units(),
            verbose: options.verbose,
            zone,
        };
        session.print(&table(asked, &options))?;
    }
    Ok(if unknown.is_empty() { 0 } else { EXIT_UNKNOWN_FIELD })
}

/// A table as a list of dictionaries; what has no value is null.
fn objects(table: &Table) -> Value {
    let object = |row: &Vec<Cell>| {
        let values = table.fields.iter().zip(row);
        values.map(|(field, cell)| (field.name.clone(), cell.1.clone())).collect::<Map<_, _>>()
    };
    table.data.iter().map(object).collect()
}

/// Lists the columns of a kind of object; needs no daemon.
pub(crate) fn list_fields(
    session: &mut Session,
    what: Resource,
    wanted: &[String],
    options: &TableArgs,
) -> Result<u8, Error> {
    let all: Vec<Field> = match wanted {
        [] => fields::all(what).iter().map(fields::FieldDef::field).collect(),
        names => names.iter().map(|name| fields::column(what, name)).collect(),
    };
    let column = |title: &str| Field {
        name: title.to_ascii_lowercase(),
        title: title.into(),
        kind: FieldKind::Text,
        doc: String::new(),
    };
    let unknown = all.iter().any(|field| field.kind == FieldKind::Unknown);
    let rows = all.into_iter().map(|field| {
        let kind = fields::kind_word(field.kind);
        vec![Cell::value(field.name), Cell::value(kind), Cell::value(field.title), Cell::value(field.doc)]
    });
    let table = Table { fields: ["Name", "Type", "Title", "Description"].map(column).into(), data: rows.collect() };
    show(session, &table, &ListOptions { table: options.clone(), ..ListOptions::default() })?;
    Ok(if unknown { EXIT_UNKNOWN_FIELD } else { 0 })
}

/// Shows nested information.
pub(crate) fn info(session: &mut Session, shown: &Tree, json: bool) -> Result<u8, Error> {
    if json {
        session.json(&plain(shown))?;
    } else {
        session.print(&tree(shown))?;
    }
    Ok(0)
}

/// Nested information as plain JSON: dictionaries, lists and texts.
fn plain(tree: &Tree) -> Value {
    match tree {
        Tree::Text(text) => Value::String(text.clone()),
        Tree::List(items) => items.iter().map(plain).collect(),
        Tree::Map(entries) => Value::Object(entries.iter().map(|(key, value)| (key.clone(), plain(value))).collect()),
    }
}

/// The text of a cell; `None` where it has no value.
pub(crate) fn text(cell: Option<&Cell>) -> Option<&str> {
    cell.filter(|cell| cell.state() == CellState::Normal).and_then(|cell| cell.1.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_chosen_or_added() {
        let usual = columns(Resource::Job, None);
        assert_eq!(usual, ["id", "status", "summary"]);
        assert_eq!(columns(Resource::Job, Some("id,user")), ["id", "user"]);
        assert_eq!(columns(Resource::Job, Some("+user,priority")), ["id", "status", "summary", "user", "priority"]);
    }
}
