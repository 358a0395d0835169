//! Output for people, in Ganeti's formats: tables, nested information, sizes, times, names in natural order.
//!
//! Scripts of administrators read these formats, so they are kept to the byte.

mod natural;
mod table;
mod text;
mod time;
mod tree;
mod units;

pub use natural::natural_cmp;
pub use table::{TableOptions, cell, table, unknown_fields};
pub use text::{value, wrap};
pub use time::{ctime, date_time, date_time_micros};
pub use tree::{tree, tree_of};
pub use units::{Units, size};
