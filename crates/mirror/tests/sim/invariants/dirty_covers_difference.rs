//! I5: where a member differs from a replica that is no member, that is known: from the member's bitmap if it may be used
//! (S5), or from one of the two windows.

use mirror::engine::BootRecord;
use mirror::wire::Range;

use crate::log::{node_id, rid};
use crate::medium::UNIT;
use crate::world::World;

pub fn check(world: &World) -> Option<String> {
    let mirror = world.log.mirror();
    let members = (0..world.nodes.len()).filter(|node| mirror.is_member_on(node_id(*node)));
    for member in members {
        for other in (0..world.nodes.len()).filter(|node| !mirror.is_member_on(node_id(*node))) {
            let record = |node: usize| world.nodes[node].boot_record.as_ref().filter(|record| record.valid);
            // Without its window everything on a replica is suspect: then nothing is claimed.
            let (Some(ours), Some(theirs)) = (record(member), record(other)) else { continue };
            let left = mirror.replicas.get(&rid(other)).map(|replica| replica.left).unwrap_or_default();
            let marks = ours.marks.values().find(|marks| marks.rid == rid(other) && marks.since <= left);
            let Some(marks) = marks else { continue };
            let (a, b) = (&world.nodes[member].medium.cache, &world.nodes[other].medium.cache);
            for unit in (0..a.len()).filter(|unit| a[*unit] != b[*unit]) {
                let at = Range::new(unit as u64 * UNIT, UNIT);
                let windows = in_window(ours, at) || in_window(theirs, at);
                if !marks.bits.touches(at) && !windows {
                    return Some(format!(
                        "I5: unit {unit} is {:#x} on member {member} and {:#x} on replica {other}, and not marked",
                        a[unit], b[unit]
                    ));
                }
            }
        }
    }
    None
}

fn in_window(record: &BootRecord, at: Range) -> bool {
    record.window.values().any(|entry| entry.range.overlaps(at))
}
