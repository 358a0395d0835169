//! Draws a [`Stage`] as the thesis' figures 16, 19, 22, 24 and 28 show theirs: each node a box, in it its guests with
//! their disks below them; mirrored disks joined by a line; above them the public network, below the one for replication.

use super::stage::{Condition, Guest, Instance, Machine, Replica, Role, Stage, Standing};
use super::svg::{Anchor, Area, Font, Stroke, Svg, lines, width_of};
use crate::Cut;

// All lengths are pixels.
const MARGIN: f64 = 24.0;
const NODE: f64 = 246.0;
const WITNESS: f64 = 176.0;
/// Between two nodes: room for what stands on the line between their disks.
const GAP: f64 = 92.0;
const TITLE: f64 = 34.0;
/// Between two lines of the title.
const LINE: f64 = 24.0;
/// Below the last line of the title: the line about the time, the public network, the nodes.
const SUBTITLE: f64 = 22.0;
const PUBLIC: f64 = 70.0;
const TOP: f64 = 142.0;
const HEADER: f64 = 62.0;
const ROW: f64 = 76.0;
const GUEST: f64 = 32.0;
const DISK: f64 = 24.0;
const INSET: f64 = 14.0;
/// Between the nodes and the network below them.
const CABLE: f64 = 58.0;
const LEGEND: f64 = 40.0;

const INK: &str = "#1f2933";
const FAINT: &str = "#616e7c";
const GREY: &str = "#9aa5b1";
const GREEN: &str = "#2f855a";
const AMBER: &str = "#b7791f";
const RED: &str = "#c53030";
const BLUE: &str = "#2b6cb0";
const REPLICATION: &str = "#6b46c1";

const HEADING: Font = Font { size: 19.0, bold: true, colour: INK };
const NAME: Font = Font { size: 15.0, bold: true, colour: INK };
const SMALL: Font = Font { size: 12.0, bold: false, colour: FAINT };
const LABEL: Font = Font { size: 11.0, bold: false, colour: INK };

const fn solid(colour: &'static str, width: f64) -> Stroke {
    Stroke { colour, width, dashed: false }
}

const fn dashed(colour: &'static str, width: f64) -> Stroke {
    Stroke { colour, width, dashed: true }
}

const fn colour(font: Font, colour: &'static str) -> Font {
    Font { colour, ..font }
}

/// Draws it, with this title, and a line below that: when it was, and whatever else is to be known.
pub(super) fn draw(stage: &Stage, title: &str, subtitle: &str) -> String {
    let plan = Plan::of(stage, title);
    let mut svg = Svg::new(plan.width, plan.height);
    let room = plan.width - 2.0 * MARGIN;
    for (index, line) in plan.title.iter().enumerate() {
        svg.text((MARGIN, TITLE + index as f64 * LINE), Anchor::Start, HEADING, room, line);
    }
    svg.text((MARGIN, plan.below_title + SUBTITLE), Anchor::Start, SMALL, room, subtitle);
    networks(&mut svg, &plan);
    for (node, area) in stage.nodes.iter().zip(&plan.nodes) {
        cables(&mut svg, &plan, node, *area);
        machine(&mut svg, node, *area, stage.instances.is_empty());
    }
    address(&mut svg, stage, &plan);
    for (row, instance) in stage.instances.iter().enumerate() {
        mirrors(&mut svg, stage, &plan, row, instance);
        for (node, area) in stage.nodes.iter().zip(&plan.nodes) {
            guests(&mut svg, node, instance, cell(*area, row));
        }
    }
    legend(&mut svg, &plan);
    svg.finish(title)
}

/// Where everything is.
struct Plan {
    width: f64,
    height: f64,
    /// The title's lines, and where the last of them is.
    title: Vec<String>,
    below_title: f64,
    public: f64,
    nodes: Vec<Area>,
    replication: f64,
}

impl Plan {
    fn of(stage: &Stage, title: &str) -> Plan {
        let widths = stage.nodes.iter().map(|node| if node.vm_capable { NODE } else { WITNESS });
        // The legend and the titles need some width, however few nodes there are.
        let width = (widths.map(|width| width + GAP).sum::<f64>() - GAP + 2.0 * MARGIN).max(780.0);
        let title = lines(title, HEADING, width - 2.0 * MARGIN);
        let below_title = TITLE + title.len().saturating_sub(1) as f64 * LINE;
        let rows = stage.instances.len().max(1) as f64;
        let (mut x, y) = (MARGIN, below_title + TOP);
        let mut nodes = Vec::new();
        for node in &stage.nodes {
            let (width, height) = if node.vm_capable { (NODE, HEADER + rows * ROW + 6.0) } else { (WITNESS, 100.0) };
            nodes.push(Area { x, y, width, height });
            x += width + GAP;
        }
        let bottom = nodes.iter().map(|area| area.bottom()).fold(y, f64::max);
        let replication = bottom + CABLE;
        let height = replication + LEGEND + 44.0;
        Plan { width, height, title, below_title, public: below_title + PUBLIC, nodes, replication }
    }
}

/// The part of a node that belongs to an instance.
fn cell(node: Area, row: usize) -> Area {
    let y = node.y + HEADER + row as f64 * ROW;
    Area { x: node.x + INSET, y, width: node.width - 2.0 * INSET, height: ROW }
}

fn guest_area(cell: Area) -> Area {
    Area { height: GUEST, ..cell }
}

fn disk_area(cell: Area) -> Area {
    Area { y: cell.y + GUEST + 8.0, height: DISK, ..cell }
}

fn networks(svg: &mut Svg, plan: &Plan) {
    let (from, to) = (MARGIN, plan.width - MARGIN);
    svg.line("network", (from, plan.public), (to, plan.public), solid(BLUE, 4.0));
    svg.text((from, plan.public - 10.0), Anchor::Start, colour(SMALL, BLUE), to - from, "public network 10.0.0.0/24");
    let y = plan.replication;
    svg.line("network", (from, y), (to, y), solid(REPLICATION, 4.0));
    svg.text((from, y + 20.0), Anchor::Start, colour(SMALL, REPLICATION), to - from, "replication network 10.1.0.0/24");
}

fn cables(svg: &mut Svg, plan: &Plan, node: &Machine, area: Area) {
    let x = area.x + 30.0;
    let dead = node.condition == Condition::Dead;
    let mut cable = |from: f64, to: f64, alive: &'static str, cut: Option<Cut>, label: f64| {
        let stroke = match (dead, cut) {
            (true, _) => dashed(GREY, 2.0),
            (false, None) => solid(alive, 3.0),
            (false, Some(_)) => dashed(RED, 2.0),
        };
        svg.line("cable", (x, from), (x, to), stroke);
        if let Some(cut) = cut {
            svg.cross(x, label - 4.0, RED);
            let says = match cut {
                Cut::Both => "unplugged",
                Cut::Out => "loses what it sends",
                Cut::In => "loses what it is sent",
            };
            svg.text((x + 12.0, label), Anchor::Start, colour(LABEL, RED), area.width - 42.0, says);
        }
    };
    cable(plan.public, area.y, BLUE, node.public, plan.public + 26.0);
    cable(area.bottom(), plan.replication, REPLICATION, node.replication, plan.replication - 24.0);
}

fn machine(svg: &mut Svg, node: &Machine, area: Area, is_empty: bool) {
    let (fill, outline) = match node.condition {
        Condition::Alive => ("#f5f7fa", solid("#3e4c59", 1.5)),
        Condition::Dead => ("#e4e7eb", dashed(GREY, 1.5)),
        Condition::Isolated => ("#fff5f5", solid(RED, 1.5)),
    };
    svg.area("node", area, 8.0, fill, outline);
    let (role, shade) = match node.role {
        Role::Master => ("master", BLUE),
        Role::Candidate => ("candidate", FAINT),
        Role::Regular => ("regular", FAINT),
        Role::Witness => ("witness", FAINT),
        Role::Drained => ("drained", AMBER),
        Role::Offline => ("offline", RED),
        Role::None => ("", FAINT),
    };
    let room = badge(svg, role, shade, area.right() - 10.0, area.y + 9.0);
    let font = if node.condition == Condition::Dead { colour(NAME, FAINT) } else { NAME };
    svg.text((area.x + INSET, area.y + 26.0), Anchor::Start, font, room - area.x - INSET - 6.0, &node.name);
    let condition = match node.condition {
        Condition::Alive => "",
        Condition::Dead => "dead",
        Condition::Isolated => "isolated",
    };
    let room = badge(svg, condition, RED, area.right() - 10.0, area.y + 32.0);
    let at = (area.x + INSET, area.y + 46.0);
    svg.text(at, Anchor::Start, SMALL, room - area.x - INSET - 6.0, &node.address.to_string());
    let remark = match node.vm_capable {
        false => Some("votes, no instances"),
        true => is_empty.then_some("no instances"),
    };
    if let Some(remark) = remark {
        let at = (area.x + INSET, area.y + HEADER + 20.0);
        svg.text(at, Anchor::Start, LABEL, area.width - 2.0 * INSET, remark);
    }
}

/// A word in a box that ends at `right`. Returns where it begins.
fn badge(svg: &mut Svg, word: &str, shade: &'static str, right: f64, y: f64) -> f64 {
    if word.is_empty() {
        return right;
    }
    let font = Font { size: 11.0, bold: true, colour: "#ffffff" };
    let area = Area { x: 0.0, y, width: (width_of(word, font) + 12.0).round(), height: 18.0 };
    let area = Area { x: right - area.width, ..area };
    svg.area("badge", area, 9.0, shade, solid(shade, 1.0));
    svg.text((area.x + area.width / 2.0, y + 13.0), Anchor::Middle, font, area.width - 8.0, word);
    area.x
}

/// The cluster's address stands on the node that has it.
fn address(svg: &mut Svg, stage: &Stage, plan: &Plan) {
    let Some(address) = stage.address else { return };
    let text = format!("{} {address}", stage.cluster);
    let (shade, fill) = if stage.holders.len() == 1 { (BLUE, "#ebf4ff") } else { (RED, "#fff5f5") };
    let font = Font { bold: true, ..colour(LABEL, shade) };
    for (node, area) in stage.nodes.iter().zip(&plan.nodes) {
        if stage.holders.contains(&node.name) {
            let flag = Area { x: area.x + 48.0, y: area.y - 24.0, width: area.width - 58.0, height: 24.0 };
            svg.area("address", flag, 4.0, fill, solid(shade, 1.5));
            let at = (flag.x + flag.width / 2.0, flag.y + 16.0);
            svg.text(at, Anchor::Middle, font, flag.width - 8.0, &text);
        }
    }
    if stage.holders.is_empty() {
        let right = plan.width - MARGIN;
        svg.text((right, plan.public - 10.0), Anchor::End, font, right - 280.0, &format!("{text}: on no node"));
    }
}

/// What an instance has on a node: its guest, its copy of the disks.
fn guests(svg: &mut Svg, node: &Machine, instance: &Instance, cell: Area) {
    let guest = instance.guests.iter().find(|guest| guest.node == node.name);
    if guest.is_some() || instance.primary == node.name {
        let (word, shade, fill) = state(guest, instance, node);
        let area = guest_area(cell);
        let outline = if guest.is_some() { solid(shade, 2.0) } else { dashed(shade, 1.5) };
        svg.area("guest", area, 6.0, fill, outline);
        let font = Font { size: 13.0, bold: true, colour: if guest.is_some() { INK } else { FAINT } };
        let said = colour(LABEL, shade);
        let room = area.width - 20.0;
        let right = width_of(&word, said).min(room * 0.65);
        svg.text((area.x + 10.0, area.middle() + 4.5), Anchor::Start, font, room - right - 8.0, &instance.name);
        svg.text((area.right() - 10.0, area.middle() + 4.0), Anchor::End, said, room * 0.65, &word);
    }
    if let Some(replica) = instance.replicas.iter().find(|replica| replica.node == node.name) {
        disk(svg, node, &instance.name, replica, disk_area(cell));
    }
}

/// How a guest is on this node: a word, and its colours.
fn state(guest: Option<&Guest>, instance: &Instance, node: &Machine) -> (String, &'static str, &'static str) {
    match guest {
        Some(guest) if guest.stopped => ("stopped (SIGSTOP)".to_owned(), AMBER, "#fffbea"),
        Some(_) if instance.primary == node.name => {
            let good = instance.status == "running" || node.condition != Condition::Alive;
            if good { ("running".to_owned(), GREEN, "#e3f9e5") } else { (instance.status.clone(), RED, "#fff5f5") }
        }
        // It is not, or not yet, the one that the cluster means.
        Some(_) => ("a second process".to_owned(), AMBER, "#fffbea"),
        None if instance.status.starts_with("ERROR") => (instance.status.clone(), RED, "#ffffff"),
        None if instance.status == "running" => {
            let gone = if node.condition == Condition::Dead { "gone with its node" } else { "gone" };
            (gone.to_owned(), RED, "#ffffff")
        }
        None => (instance.status.clone(), FAINT, "#ffffff"),
    }
}

fn disk(svg: &mut Svg, node: &Machine, instance: &str, replica: &Replica, area: Area) {
    let known = replica.state.as_deref().filter(|_| node.condition != Condition::Dead);
    let shade = match (known, replica.standing) {
        (None, _) => GREY,
        (Some(_), Standing::InSync) => GREEN,
        (Some(_), Standing::Syncing(_)) => AMBER,
        (Some(_), Standing::Outdated) => RED,
    };
    let outline = if known.is_some() { solid(shade, 1.5) } else { dashed(shade, 1.5) };
    svg.area("disk", area, 11.0, if known.is_some() { "#ffffff" } else { "#f0f2f4" }, outline);
    let role = if replica.primary { "primary" } else { "secondary" };
    let said = known.unwrap_or(match node.condition {
        Condition::Dead => "not there",
        _ => "not known",
    });
    let font = colour(LABEL, if shade == GREY { FAINT } else { shade });
    let (room, y) = (area.width - 24.0, area.middle() + 4.0);
    let text = format!("{said}, {role}");
    svg.text((area.right() - 12.0, y), Anchor::End, font, room, &text);
    let left = room - width_of(&text, font) - 8.0;
    svg.text((area.x + 12.0, y), Anchor::Start, font, left, &format!("{instance}:"));
}

/// The lines between the replicas of an instance, from each node to the next one that has one.
fn mirrors(svg: &mut Svg, stage: &Stage, plan: &Plan, row: usize, instance: &Instance) {
    let of = |node: &Machine| instance.replicas.iter().find(|replica| replica.node == node.name);
    let there: Vec<_> =
        stage.nodes.iter().zip(&plan.nodes).filter_map(|(node, area)| Some((node, of(node)?, *area))).collect();
    for pair in there.windows(2) {
        let [(left, one, from), (right, other, to)] = pair else { continue };
        let (from, to) = (disk_area(cell(*from, row)), disk_area(cell(*to, row)));
        let (y, ends) = (from.middle(), (from.right(), to.x));
        let apart =
            [left, right].into_iter().any(|node| node.condition == Condition::Dead || node.replication.is_some());
        let (text, stroke) = match (one.standing, other.standing, apart) {
            (Standing::InSync, Standing::InSync, false) => ("in sync".to_owned(), solid(GREEN, 3.0)),
            (Standing::Syncing(done), _, false) | (_, Standing::Syncing(done), false) => {
                (format!("resync {done:.0} %"), dashed(AMBER, 3.0))
            }
            (Standing::InSync, Standing::InSync, true) => ("no link".to_owned(), dashed(GREY, 2.0)),
            _ => ("outdated".to_owned(), dashed(GREY, 2.0)),
        };
        let broken = stroke.colour == GREY;
        svg.line("mirror", (ends.0, y), (ends.1, y), stroke);
        // In the gap beside the left node, whatever lies between the two.
        let middle = ends.0 + INSET + GAP / 2.0;
        if broken {
            svg.cross(middle, y, GREY);
        }
        let font = colour(LABEL, if broken { FAINT } else { stroke.colour });
        svg.text((middle, y - 10.0), Anchor::Middle, font, GAP - 8.0, &text);
    }
}

/// What the lines and colours mean.
fn legend(svg: &mut Svg, plan: &Plan) {
    let y = plan.replication + LEGEND + 22.0;
    let mut x = MARGIN;
    for (text, stroke) in [
        ("mirrored, in sync", solid(GREEN, 3.0)),
        ("resync under way", dashed(AMBER, 3.0)),
        ("outdated, or no link", dashed(GREY, 2.0)),
        ("cable cut", dashed(RED, 2.0)),
    ] {
        svg.line("legend", (x, y - 4.0), (x + 30.0, y - 4.0), stroke);
        svg.text((x + 36.0, y), Anchor::Start, colour(LABEL, FAINT), 160.0, text);
        x += 36.0 + width_of(text, LABEL) + 24.0;
    }
}

#[cfg(test)]
mod tests;
