//! Nested information: what `info` commands show, with Ganeti's keys in Ganeti's order.
//!
//! Tools read this output as YAML by its keys. A key that this version has no meaning for is left out of the cluster's
//! information rather than shown with a value that nothing stands behind.

mod cluster;
mod instance;
mod node;
#[cfg(test)]
mod yaml;

use jiff::tz::TimeZone;
use model::{Params, Timestamp};
use opcodes::format::date_time;
use opcodes::wire::Tree;

pub use cluster::cluster_info;
pub use instance::instance_info;
pub use node::node_info;

/// A key with its value.
fn entry(key: &str, value: impl std::fmt::Display) -> (String, Tree) {
    (key.to_owned(), Tree::text(value))
}

/// A key with what belongs to it.
fn under(key: &str, tree: Tree) -> (String, Tree) {
    (key.to_owned(), tree)
}

/// Yes or no, as Ganeti writes it.
fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// A time, in the zone of this machine.
fn time(at: Timestamp) -> String {
    date_time(at, &TimeZone::system())
}

/// Names on one line.
fn line<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Names on one line; `(none)` if there are none.
fn line_or_none<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    Some(line(names)).filter(|line| !line.is_empty()).unwrap_or_else(|| "(none)".to_owned())
}

/// Values by name.
fn values(params: &Params) -> Tree {
    Tree::map(params.iter().map(|(name, value)| (name.as_str(), Tree::text(value))))
}

/// Values that hold, by name; `default (…)` where they were not set for the object itself.
fn inherited(own: &Params, filled: &Params) -> Tree {
    Tree::map(filled.iter().map(|(name, value)| {
        let text = if own.contains_key(name) { value.to_string() } else { format!("default ({value})") };
        (name.as_str(), Tree::Text(text))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ParamValue;
    use opcodes::format::tree;

    #[test]
    fn what_was_not_set_is_shown_as_a_default() {
        let filled = Params::from([
            ("acpi".to_owned(), ParamValue::Bool(true)),
            ("cpu_type".to_owned(), ParamValue::Text(String::new())),
            ("vcpus".to_owned(), ParamValue::Int(2)),
        ]);
        let own = Params::from([("vcpus".to_owned(), ParamValue::Int(2))]);
        assert_eq!(tree(&inherited(&own, &filled)), "acpi: default (True)\ncpu_type: default ()\nvcpus: 2\n");
    }

    #[test]
    fn an_empty_line_of_names_says_so() {
        assert_eq!(line_or_none([]), "(none)");
        assert_eq!(line_or_none(["a", "b"]), "a, b");
    }
}
