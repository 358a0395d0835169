//! Cables are cut and mended, and others see it.

use std::io::{BufRead, BufReader};

use lab::{Cable, Cut, Node};

use crate::support::*;

fn reaches(from: &Node, to: &str) -> bool {
    from.exec(["ping", "-c1", "-W1", to]).unwrap().status.success()
}

/// A peer that asked while the cable was cut asks again only after a second: an answer may take that long.
fn assert_reaches(from: &Node, to: &str) {
    eventually(&format!("{} reaches {to}", from.name), || reaches(from, to));
}

#[test]
fn a_cut_is_seen_from_the_client_and_healed() {
    let lab = up(config());
    let (client, other) = (lab.client().unwrap(), lab.node("node02").unwrap());
    assert_reaches(&client, "node01");

    lab.cut("node01", Cable::Both, Cut::Both).unwrap();
    assert!(!reaches(&client, "node01"));
    assert!(!reaches(&other, "10.1.0.5"));
    assert_reaches(&client, "node02");
    let carrier = lab.node("node01").unwrap().exec(["cat", "/sys/class/net/up0/carrier"]).unwrap().stdout;
    assert_eq!(carrier.trim(), "0", "an unplugged cable has a carrier");
    lab.heal("node01").unwrap();
    assert_reaches(&client, "node01");
    assert_reaches(&other, "10.1.0.5");

    lab.cut("node01", Cable::Public, Cut::Both).unwrap();
    assert!(!reaches(&client, "node01"));
    assert_reaches(&other, "10.1.0.5");
    lab.heal("node01").unwrap();

    lab.cut("node01", Cable::Replication, Cut::Both).unwrap();
    assert_reaches(&client, "node01");
    assert!(!reaches(&other, "10.1.0.5"));
    // A cut is not mended by a restart of the node.
    lab.kill("node01").unwrap();
    lab.start("node01").unwrap();
    assert_reaches(&client, "node01");
    assert!(!reaches(&other, "10.1.0.5"));
    lab.heal("node01").unwrap();
    assert_reaches(&other, "10.1.0.5");
}

#[test]
fn one_direction_is_cut_alone() {
    let lab = up(config());
    let (client, node) = (lab.client().unwrap(), lab.node("node01").unwrap());
    // Without ARP, which needs both directions.
    for (of, its, from, device) in [(&client, "eth0", &node, "br0"), (&node, "br0", &client, "eth0")] {
        let mac = of.exec(["cat", &format!("/sys/class/net/{its}/address")]).unwrap().stdout;
        let address = of.address.to_string();
        let neighbour = ["ip", "neigh", "replace", &address, "lladdr", mac.trim(), "dev", device];
        assert!(from.exec(neighbour).unwrap().status.success());
    }
    let mut ears = Vec::new();
    for hears in [&client, &node] {
        let mut running = hears.command(["socat", "-u", "UDP-RECV:7000", "STDOUT"]).spawn().unwrap();
        let lines = BufReader::new(running.take_stdout().unwrap()).lines();
        eventually("the listener listens", || hears.exec(["cat", "/proc/net/udp"]).unwrap().stdout.contains(":1B58 "));
        ears.push((running, lines));
    }
    let say = |from: &Node, to: &Node, what: &str| {
        let to = format!("UDP-SENDTO:{}:7000", to.address);
        let sent = from.command(["socat", "-u", "STDIN", &to]).input(format!("{what}\n")).output().unwrap();
        assert!(sent.status.success(), "{sent:?}");
    };
    for (cut, client_hears, node_hears) in [(Cut::Out, false, true), (Cut::In, true, false)] {
        lab.cut("node01", Cable::Both, cut).unwrap();
        assert!(!reaches(&client, "node01"));
        say(&node, &client, "while cut");
        say(&client, &node, "while cut");
        lab.heal("node01").unwrap();
        say(&node, &client, "healed");
        say(&client, &node, "healed");
        for (ear, hears) in ears.iter_mut().zip([client_hears, node_hears]) {
            let mut next = || ear.1.next().unwrap().unwrap();
            if hears {
                assert_eq!(next(), "while cut", "{cut:?}");
            }
            assert_eq!(next(), "healed", "{cut:?}");
        }
    }
}
