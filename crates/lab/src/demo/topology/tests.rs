use std::net::Ipv4Addr;

use roxmltree::{Document, Node};

use super::*;
use crate::demo::svg::Area;

fn node(name: &str, host: u8, role: Role) -> Machine {
    Machine {
        name: name.to_owned(),
        address: Ipv4Addr::new(10, 0, 0, host),
        role,
        condition: Condition::Alive,
        vm_capable: role != Role::Witness,
        public: None,
        replication: None,
    }
}

fn replica(node: &str, primary: bool, standing: Standing) -> Replica {
    Replica { node: node.to_owned(), state: Some("UpToDate".to_owned()), primary, standing }
}

/// Runs on `at`, with a second replica on `other`.
fn instance(name: &str, at: &str, other: &str) -> Instance {
    Instance {
        name: name.to_owned(),
        primary: at.to_owned(),
        status: "running".to_owned(),
        guests: vec![Guest { node: at.to_owned(), stopped: false }],
        replicas: vec![replica(at, true, Standing::InSync), replica(other, false, Standing::InSync)],
    }
}

fn stage(nodes: Vec<Machine>, instances: Vec<Instance>) -> Stage {
    Stage {
        cluster: "cluster01".to_owned(),
        address: Some(Ipv4Addr::new(10, 0, 0, 20)),
        holders: vec!["node01".to_owned()],
        nodes,
        instances,
        said_by: Some("node01".to_owned()),
    }
}

/// Figure 19: two instances on node01, one on node02.
fn calm() -> Stage {
    let nodes =
        vec![node("node01", 5, Role::Master), node("node02", 6, Role::Candidate), node("witness", 7, Role::Witness)];
    let instances = vec![
        instance("vm1", "node01", "node02"),
        instance("vm2", "node02", "node01"),
        instance("vm3", "node01", "node02"),
    ];
    stage(nodes, instances)
}

/// Figure 24: the master is dead, and nobody has done anything yet.
fn dead() -> Stage {
    let mut stage = calm();
    stage.holders.clear();
    stage.nodes[0].condition = Condition::Dead;
    for instance in stage.instances.iter_mut().filter(|instance| instance.primary == "node01") {
        instance.status = "ERROR_nodedown".to_owned();
        instance.guests.clear();
        instance.replicas[0].state = None;
    }
    stage
}

/// Its guest stopped on the side that was cut off, and runs on the other one.
fn parted() -> Stage {
    let mut stage = calm();
    let node01 = &mut stage.nodes[0];
    (node01.condition, node01.public, node01.replication) = (Condition::Isolated, Some(Cut::Both), Some(Cut::Both));
    (node01.role, stage.nodes[1].role) = (Role::Candidate, Role::Master);
    stage.holders = vec!["node02".to_owned()];
    for instance in stage.instances.iter_mut().filter(|instance| instance.primary == "node01") {
        instance.primary = "node02".to_owned();
        instance.guests = vec![
            Guest { node: "node01".to_owned(), stopped: true },
            Guest { node: "node02".to_owned(), stopped: false },
        ];
        instance.replicas =
            vec![replica("node02", true, Standing::InSync), replica("node01", false, Standing::Outdated)];
    }
    stage
}

/// As much as has to have its place: three nodes, a witness, six instances, everything that can be wrong.
fn full() -> Stage {
    let mut nodes = vec![
        node("node01", 5, Role::Master),
        node("node02", 6, Role::Candidate),
        node("node03", 8, Role::Offline),
        node("witness", 7, Role::Witness),
    ];
    nodes[1].public = Some(Cut::In);
    nodes[1].replication = Some(Cut::Out);
    nodes[2].condition = Condition::Dead;
    let mut instances: Vec<Instance> = [(1, "node01", "node02"), (2, "node02", "node03"), (3, "node01", "node03")]
        .into_iter()
        .chain([(4, "node03", "node01"), (5, "node02", "node01"), (6, "node03", "node02")])
        .map(|(number, at, other)| instance(&format!("vm{number}"), at, other))
        .collect();
    instances[0].replicas[1].standing = Standing::Syncing(41.7);
    instances[1].replicas[1].standing = Standing::Outdated;
    instances[3].status = "ERROR_nodeoffline".to_owned();
    instances[3].guests.clear();
    instances[4].guests[0].stopped = true;
    instances[5].name = "a-name-that-is-much-longer-than-its-box.example.org".to_owned();
    instances[5].guests.clear();
    instances[5].status = "ADMIN_down".to_owned();
    instances[5].replicas.clear();
    let mut stage = stage(nodes, instances);
    stage.holders.push("node02".to_owned());
    stage
}

/// node01 is back, and catches up.
fn healing() -> Stage {
    let mut stage = calm();
    stage.instances[0].replicas[1].standing = Standing::Syncing(41.7);
    stage.instances[0].replicas[1].state = Some("Inconsistent".to_owned());
    stage
}

/// In the order of the life that the demo shows, with a title each.
fn all() -> Vec<(Stage, &'static str)> {
    vec![
        (calm(), "vm2 has moved to node02 (figure 19)"),
        (dead(), "node01 is dead (figure 24)"),
        (
            parted(),
            "node01 has lost both its links, but lives: vm1 and vm3 were stopped there, and run on node02 before anybody has typed anything",
        ),
        (healing(), "the cables are mended"),
        (full(), "three nodes, a witness, six instances"),
        (stage(vec![node("node01", 5, Role::None)], Vec::new()), "one node, in no cluster"),
    ]
}

fn number(node: Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap_or_else(|| panic!("no {name} in {node:?}")).parse().unwrap()
}

/// The boxes of a drawing, with what they stand for.
fn boxes<'a>(drawing: &'a Document<'_>) -> Vec<(&'a str, Area)> {
    let rects = drawing.descendants().filter(|node| node.has_tag_name("rect"));
    rects
        .filter(|node| node.attribute("class") != Some("ground"))
        .map(|node| {
            let [x, y, width, height] = ["x", "y", "width", "height"].map(|name| number(node, name));
            (node.attribute("class").unwrap(), Area { x, y, width, height })
        })
        .collect()
}

/// The texts of a drawing, with the room that they may take.
fn texts<'a>(drawing: &'a Document<'_>) -> Vec<(&'a str, Area)> {
    let texts = drawing.descendants().filter(|node| node.has_tag_name("text"));
    texts
        .filter_map(|node| {
            let text = node.text()?;
            let font =
                Font { size: number(node, "font-size"), bold: node.attribute("font-weight").is_some(), colour: INK };
            let (width, x) = (width_of(text, font), number(node, "x"));
            let x = match node.attribute("text-anchor") {
                Some("start") => x,
                Some("middle") => x - width / 2.0,
                _ => x - width,
            };
            Some((text, Area { x, y: number(node, "y") - font.size * 0.8, width, height: font.size }))
        })
        .collect()
}

fn overlap(one: Area, other: Area) -> bool {
    one.x < other.right() && other.x < one.right() && one.y < other.bottom() && other.y < one.bottom()
}

fn inside(one: Area, other: Area) -> bool {
    one.x >= other.x && one.right() <= other.right() && one.y >= other.y && one.bottom() <= other.bottom()
}

#[test]
fn every_drawing_is_xml_and_shows_every_node_and_instance() {
    for (stage, title) in all() {
        let text = draw(&stage, title, "at 12:00:00");
        let drawing = Document::parse(&text).unwrap();
        assert_eq!(drawing.root_element().tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
        let shown = texts(&drawing);
        let is_shown = |wanted: &str| shown.iter().any(|(text, _)| text.trim_end_matches('…').starts_with(wanted));
        for node in &stage.nodes {
            assert!(is_shown(&node.name) && is_shown(&node.address.to_string()), "{} in '{title}'", node.name);
        }
        for instance in &stage.instances {
            assert!(is_shown(instance.name.get(..6).unwrap_or(&instance.name)), "{} in '{title}'", instance.name);
        }
        let guests = boxes(&drawing).iter().filter(|(class, _)| *class == "guest").count();
        let wanted = |instance: &Instance| {
            let of_process = instance.guests.len();
            of_process + usize::from(instance.guests.iter().all(|guest| guest.node != instance.primary))
        };
        assert_eq!(guests, stage.instances.iter().map(wanted).sum::<usize>(), "'{title}'");
    }
}

#[test]
fn nothing_overlaps() {
    for (stage, title) in all() {
        let text = draw(&stage, title, "at 12:00:00, 74.2 s after the demo began; as node01 says");
        let drawing = Document::parse(&text).unwrap();
        let [width, height] = ["width", "height"].map(|name| number(drawing.root_element(), name));
        let paper = Area { x: 0.0, y: 0.0, width, height };
        let (boxes, texts) = (boxes(&drawing), texts(&drawing));
        for (index, (class, area)) in boxes.iter().enumerate() {
            assert!(inside(*area, paper), "{class} {area:?} in '{title}'");
            for (other_class, other) in &boxes[index + 1..] {
                assert!(
                    !overlap(*area, *other) || (inside(*other, *area) && *class == "node"),
                    "{class} {area:?} and {other_class} {other:?} in '{title}'"
                );
            }
        }
        for (index, (text, area)) in texts.iter().enumerate() {
            assert!(inside(*area, paper), "'{text}' {area:?} in '{title}'");
            for (other, place) in &texts[index + 1..] {
                assert!(!overlap(*area, *place), "'{text}' {area:?} and '{other}' {place:?} in '{title}'");
            }
            for (class, place) in &boxes {
                assert!(
                    !overlap(*area, *place) || inside(*area, *place),
                    "'{text}' {area:?} and {class} {place:?} in '{title}'"
                );
            }
        }
    }
}

#[test]
fn names_are_text_whatever_is_in_them() {
    let mut stage = calm();
    stage.nodes[0].name = "<n&1>".to_owned();
    stage.instances[0].primary = "<n&1>".to_owned();
    let text = draw(&stage, "\"a\" <b> & 'c'", "");
    let drawing = Document::parse(&text).unwrap();
    assert!(texts(&drawing).iter().any(|(text, _)| *text == "<n&1>"));
    assert_eq!(drawing.descendants().find(|node| node.has_tag_name("title")).unwrap().text(), Some("\"a\" <b> & 'c'"));
}

#[test]
fn what_is_wrong_is_said() {
    let says = |stage: &Stage| {
        let drawing = draw(stage, "", "");
        let drawing = Document::parse(&drawing).unwrap();
        texts(&drawing).into_iter().map(|(text, _)| text.to_owned()).collect::<Vec<_>>()
    };
    let count = |said: &[String], wanted: &str| said.iter().filter(|text| *text == wanted).count();
    let dead = says(&dead());
    assert_eq!((count(&dead, "dead"), count(&dead, "ERROR_nodedown"), count(&dead, "no link")), (1, 2, 3), "{dead:?}");
    assert_eq!(count(&dead, "cluster01 10.0.0.20: on no node"), 1, "{dead:?}");
    let parted = says(&parted());
    assert_eq!((count(&parted, "isolated"), count(&parted, "unplugged")), (1, 2), "{parted:?}");
    assert_eq!((count(&parted, "stopped (SIGSTOP)"), count(&parted, "outdated")), (2, 2), "{parted:?}");
    assert_eq!(count(&says(&healing()), "resync 42 %"), 1);
    let full = says(&full());
    assert_eq!(count(&full, "loses what it is sent"), 1, "{full:?}");
    assert_eq!(count(&full, "cluster01 10.0.0.20"), 2, "{full:?}");
}
