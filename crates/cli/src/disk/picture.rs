//! A mirrored disk as text.

use std::fmt::Write as _;

use opcodes::disks::{DiskCounters, DiskReport, NodeReplica, PeerReport, ReplicaReport, ResyncReport};

use crate::session::Session;

/// Characters of a progress bar, its arrow included (DRBD's).
const BAR: u64 = 20;
/// What is said of a replica whose node says nothing.
const UNKNOWN: (&str, &str) = ("Unknown", "DUnknown");

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// Plain text.
    Plain,
    /// A terminal's colours.
    Colours,
}

/// How a word is meant.
#[derive(Clone, Copy)]
enum Mood {
    Good,
    Passing,
    Bad,
    Heading,
}

impl Paint {
    /// Colours on a terminal, unless its user does not want any (`NO_COLOR`).
    pub fn of(session: &Session) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if session.screen && !unwanted { Paint::Colours } else { Paint::Plain }
    }

    fn word(self, mood: Mood, text: &str) -> String {
        let code = match mood {
            Mood::Good => "32",
            Mood::Passing => "33",
            Mood::Bad => "31",
            Mood::Heading => "1",
        };
        match self {
            Paint::Plain => text.to_owned(),
            Paint::Colours => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    /// The state of a replica's data.
    fn state(self, state: &str) -> String {
        let mood = match state {
            "UpToDate" => Mood::Good,
            "Outdated" | "Inconsistent" => Mood::Passing,
            _ => Mood::Bad,
        };
        self.word(mood, state)
    }
}

/// What one disk looks like: lines with their ends.
pub(super) fn picture(disk: &DiskReport, paint: Paint) -> String {
    let mut text = header(disk, paint);
    text.push('\n');
    let members = disk
        .replicas
        .iter()
        .map(|replica| replica.node.as_str())
        .filter(|node| disk.in_sync.iter().any(|it| it == node));
    let members: Vec<&str> = members.collect();
    let in_sync = if members.is_empty() { "none".to_owned() } else { members.join(", ") };
    // Writing to a string doesn't fail.
    let _ = writeln!(text, "  epoch {}  version {}  mode {}  in sync: {in_sync}", disk.epoch, disk.version, disk.mode);
    let width = disk.replicas.iter().map(|replica| replica.node.chars().count()).max().unwrap_or(0);
    for NodeReplica { node, report, why } in &disk.replicas {
        match report {
            Some(report) => {
                let _ = writeln!(text, "  {node:width$}  {}", drbd(disk, node, report));
                details(&mut text, node, report, paint);
            }
            None => {
                let why = why.as_deref().unwrap_or("it says nothing of this replica");
                let _ = writeln!(text, "  {node:width$}  {}", paint.word(Mood::Bad, why));
            }
        }
    }
    text
}

/// ` vm1 disk/0  4.0 GiB  node01 Primary/UpToDate <-> node02 Secondary/UpToDate  Connected C`
fn header(disk: &DiskReport, paint: Paint) -> String {
    let name = paint.word(Mood::Heading, &format!("{} disk/{}", disk.instance, disk.index));
    let mut text = format!("{name}  {}", size(disk.size_mib));
    let Some((first, others)) = disk.replicas.split_first() else { return text };
    let end = |node: &str, (role, state): (&str, &str)| format!("{node} {role}/{}", paint.state(state));
    let _ = write!(text, "  {}", end(&first.node, own(first)));
    let mut links: Vec<&str> = Vec::new();
    for other in others {
        let peer = first.report.as_ref().and_then(|report| seen(report, &other.node));
        let link = peer.map_or("Unknown", |peer| peer.connection.as_str());
        let arrow = match link {
            "Connected" => "<->",
            "SyncSource" => "==>",
            "SyncTarget" => "<==",
            _ => "-/-",
        };
        // The one that serves the disk knows best what the other lacks; the other knows best what it is.
        let (role, state) = match (&other.report, peer) {
            (Some(report), Some(peer)) if disk.primary.is_some() => (report.role.as_str(), peer.state.as_str()),
            (None, Some(peer)) => (peer.role.as_str(), peer.state.as_str()),
            _ => own(other),
        };
        let _ = write!(text, " {arrow} {}", end(&other.node, (role, state)));
        links.push(link);
    }
    if disk.primary.is_none() {
        text.push_str("  not in use");
    } else {
        links.dedup();
        for link in links {
            let mood = match link {
                "Connected" => Mood::Good,
                "SyncSource" | "SyncTarget" => Mood::Passing,
                _ => Mood::Bad,
            };
            let _ = write!(text, "  {}", paint.word(mood, link));
        }
        text.push_str(" C");
    }
    text
}

/// Role and state of a replica, as its node says.
fn own(replica: &NodeReplica) -> (&str, &str) {
    replica.report.as_ref().map_or(UNKNOWN, |report| (report.role.as_str(), report.state.as_str()))
}

/// The replica of a node, as another one sees it.
fn seen<'a>(report: &'a ReplicaReport, node: &str) -> Option<&'a PeerReport> {
    report.peers.iter().find(|peer| peer.node == node)
}

/// What a node says of its replica, as a line of `/proc/drbd`. Of more than two replicas, the primary's line has all others
/// in the order of the lines; a secondary's has the primary alone, because secondaries tell each other nothing.
fn drbd(disk: &DiskReport, node: &str, report: &ReplicaReport) -> String {
    let shown = |other: &str| disk.primary.as_deref().is_none_or(|primary| primary == node || primary == other);
    let others = disk.replicas.iter().filter(|other| shown(&other.node));
    let others: Vec<&PeerReport> = others.filter_map(|other| seen(report, &other.node)).collect();
    let peers = |value: fn(&PeerReport) -> &str| {
        let values: Vec<&str> = others.iter().map(|peer| value(peer)).collect();
        if values.is_empty() { "Unknown".to_owned() } else { values.join("/") }
    };
    let connection = peers(|peer| &peer.connection);
    let (roles, states) = (peers(|peer| &peer.role), peers(|peer| &peer.state));
    let DiskCounters { sent, received, written, read } = report.counters;
    let missing: u64 = report.peers.iter().map(|peer| peer.out_of_sync).sum();
    format!(
        "cs:{connection} ro:{}/{roles} ds:{}/{states} C  ns:{} nr:{} dw:{} dr:{} pe:{} oos:{}",
        report.role,
        report.state,
        kib(sent),
        kib(received),
        kib(written),
        kib(read),
        report.pending,
        kib(missing),
    )
}

/// What is under way, and what is wrong.
fn details(text: &mut String, node: &str, report: &ReplicaReport, paint: Paint) {
    for peer in &report.peers {
        if let Some(resync) = &peer.resync {
            let _ = writeln!(text, "    {}  {node} ==> {}", paint.word(Mood::Passing, &bar(resync)), peer.node);
            let _ = writeln!(text, "    {}", pace(resync));
        }
        if let Some(why) = &peer.refused {
            let _ = writeln!(text, "    {}", paint.word(Mood::Bad, &format!("{} is kept aside: {why}", peer.node)));
        }
    }
    if let Some(why) = &report.failed {
        let _ = writeln!(text, "    {}", paint.word(Mood::Bad, &format!("this replica can't be used: {why}")));
    }
    if report.suspended {
        let why = "the guest is suspended: no replica can take its writes";
        let _ = writeln!(text, "    {}", paint.word(Mood::Bad, why));
    } else if report.holding {
        let why = "acknowledgements are held: a replica of the in-sync set does not answer";
        let _ = writeln!(text, "    {}", paint.word(Mood::Passing, why));
    }
}

/// `[=======>............] sync'ed: 41.2% (44032/65536)K`: what is left, of all that has to be copied.
fn bar(resync: &ResyncReport) -> String {
    let total = resync.total.max(1);
    let done = resync.done.min(resync.total);
    // In tenths of a percent, rounded down: 100.0% is said only when nothing is left.
    let tenths = if resync.total == 0 { 1000 } else { u128::from(done) * 1000 / u128::from(total) };
    let filled = usize::try_from(u128::from(done) * u128::from(BAR) / u128::from(total)).unwrap_or_default();
    let bar: String = (0..usize::try_from(BAR).unwrap_or_default())
        .map(|column| match column.cmp(&filled) {
            std::cmp::Ordering::Less => '=',
            std::cmp::Ordering::Equal => '>',
            std::cmp::Ordering::Greater => '.',
        })
        .collect();
    format!("[{bar}] sync'ed: {}.{}% ({}/{})K", tenths / 10, tenths % 10, kib(resync.total - done), kib(resync.total))
}

/// `finish: 0:00:02 speed: 21,504 K/sec`
fn pace(resync: &ResyncReport) -> String {
    let finish = resync.eta_s.map_or_else(
        || "not known yet".to_owned(),
        |left| format!("{}:{:02}:{:02}", left / 3600, left / 60 % 60, left % 60),
    );
    format!("finish: {finish} speed: {} K/sec", thousands(kib(resync.rate)))
}

/// Bytes as KiB; a rest counts as one.
fn kib(bytes: u64) -> u64 {
    bytes.div_ceil(1024)
}

/// `21,504`
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size given in MiB, `4.0 GiB`.
fn size(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib} MiB"),
        1024..1_048_576 => format!("{:.1} GiB", mib as f64 / 1024.0),
        _ => format!("{:.1} TiB", mib as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{DiskId, ReplicaId, RunId, Uuid};

    fn replica(role: &str, state: &str, peer: PeerReport) -> ReplicaReport {
        ReplicaReport {
            disk: DiskId(Uuid::from_u128(1)),
            replica: ReplicaId(Uuid::from_u128(2)),
            role: role.into(),
            state: state.into(),
            peers: vec![peer],
            serving: (role == "Primary").then_some(RunId(7)),
            counters: DiskCounters { sent: 4096 << 10, received: 0, written: 4096 << 10, read: 100 },
            pending: 2,
            waiting: 0,
            holding: false,
            suspended: false,
            failed: None,
            held: None,
        }
    }

    fn peer(node: &str, connection: &str, role: &str, state: &str) -> PeerReport {
        PeerReport {
            node: node.into(),
            connection: connection.into(),
            role: role.into(),
            state: state.into(),
            out_of_sync: 0,
            resync: None,
            refused: None,
        }
    }

    fn disk(primary: ReplicaReport, secondary: Option<ReplicaReport>) -> DiskReport {
        let why = secondary.is_none().then(|| "node02 does not answer".to_owned());
        DiskReport {
            instance: "vm1".into(),
            index: 0,
            disk: primary.disk,
            size_mib: 4096,
            mode: "strict".into(),
            epoch: "1.3".into(),
            version: "1.7".into(),
            in_sync: vec!["node01".into(), "node02".into()],
            primary: Some("node01".into()),
            replicas: vec![
                NodeReplica { node: "node01".into(), report: Some(primary), why: None },
                NodeReplica { node: "node02".into(), report: secondary, why },
            ],
        }
    }

    #[test]
    fn a_healthy_disk_takes_four_lines() {
        let primary = replica("Primary", "UpToDate", peer("node02", "Connected", "Secondary", "UpToDate"));
        let secondary = replica("Secondary", "UpToDate", peer("node01", "Connected", "Primary", "UpToDate"));
        let shown = disk(primary, Some(secondary));
        assert_eq!(
            picture(&shown, Paint::Plain),
            "vm1 disk/0  4.0 GiB  node01 Primary/UpToDate <-> node02 Secondary/UpToDate  Connected C\n  \
             epoch 1.3  version 1.7  mode strict  in sync: node01, node02\n  \
             node01  cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C  ns:4096 nr:0 dw:4096 dr:1 pe:2 oos:0\n  \
             node02  cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C  ns:4096 nr:0 dw:4096 dr:1 pe:2 oos:0\n"
        );
        assert!(picture(&shown, Paint::Colours).starts_with("\x1b[1mvm1 disk/0\x1b[0m  4.0 GiB"));
    }

    #[test]
    fn a_resync_has_a_bar_a_rate_and_an_estimate() {
        let mut target = peer("node02", "SyncSource", "Secondary", "Inconsistent");
        target.out_of_sync = 44032 << 10;
        target.resync =
            Some(ResyncReport { total: 65536 << 10, done: 21504 << 10, rate: 21504 << 10, eta_s: Some(3_725) });
        let secondary = replica("Secondary", "Inconsistent", peer("node01", "SyncTarget", "Primary", "UpToDate"));
        let text = picture(&disk(replica("Primary", "UpToDate", target), Some(secondary)), Paint::Plain);
        assert!(text.contains("node01 Primary/UpToDate ==> node02 Secondary/Inconsistent  SyncSource C\n"), "{text}");
        assert!(
            text.contains(" oos:44032\n    [======>.............] sync'ed: 32.8% (44032/65536)K  node01 ==> node02\n")
        );
        assert!(text.contains("    finish: 1:02:05 speed: 21,504 K/sec\n"), "{text}");
    }

    #[test]
    fn the_bar_is_full_only_when_all_is_done() {
        let at = |done| bar(&ResyncReport { total: 1 << 40, done, rate: 0, eta_s: None });
        assert!(at(0).starts_with("[>...................] sync'ed: 0.0% "));
        assert!(at((1 << 40) - 1).starts_with("[===================>] sync'ed: 99.9% (1/"));
        assert!(at(1 << 40).starts_with("[====================] sync'ed: 100.0% (0/"));
        let nothing = ResyncReport { total: 0, done: 0, rate: 0, eta_s: None };
        assert!(bar(&nothing).contains("100.0%"));
        assert_eq!(pace(&nothing), "finish: not known yet speed: 0 K/sec");
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let mut away = peer("node02", "WFConnection", "Unknown", "DUnknown");
        away.refused = Some("its epoch is from the future".into());
        let mut primary = replica("Primary", "UpToDate", away);
        primary.holding = true;
        primary.failed = Some("its medium failed".into());
        let text = picture(&disk(primary.clone(), None), Paint::Plain);
        assert!(text.contains("node01 Primary/UpToDate -/- node02 Unknown/DUnknown  WFConnection C\n"), "{text}");
        assert!(text.contains("\n  node02  node02 does not answer\n"), "{text}");
        assert!(text.contains("    node02 is kept aside: its epoch is from the future\n"), "{text}");
        assert!(text.contains("    this replica can't be used: its medium failed\n"), "{text}");
        assert!(text.contains("    acknowledgements are held: "), "{text}");
        primary.suspended = true;
        assert!(picture(&disk(primary, None), Paint::Plain).contains("    the guest is suspended: "));
    }

    #[test]
    fn a_disk_that_nobody_serves_is_not_in_use() {
        let resting = |other| replica("Secondary", "UpToDate", peer(other, "StandAlone", "Secondary", "UpToDate"));
        let mut shown = disk(resting("node02"), Some(resting("node01")));
        shown.primary = None;
        let text = picture(&shown, Paint::Plain);
        assert!(
            text.starts_with(
                "vm1 disk/0  4.0 GiB  node01 Secondary/UpToDate -/- node02 Secondary/UpToDate  not in use\n"
            )
        );
    }

    #[test]
    fn of_three_replicas_the_primary_shows_both_others_and_they_the_primary() {
        let mut primary = replica("Primary", "UpToDate", peer("node03", "SyncSource", "Secondary", "Inconsistent"));
        primary.peers.push(peer("node02", "Connected", "Secondary", "UpToDate"));
        let follower = |other: &str| {
            let mut report = replica("Secondary", "UpToDate", peer(other, "StandAlone", "Unknown", "DUnknown"));
            report.peers.push(peer("node01", "Connected", "Primary", "UpToDate"));
            report
        };
        let mut shown = disk(primary, Some(follower("node03")));
        shown.replicas.push(NodeReplica { node: "node03".into(), report: Some(follower("node02")), why: None });
        let text = picture(&shown, Paint::Plain);
        assert!(text.contains(
            "node01 Primary/UpToDate <-> node02 Secondary/UpToDate ==> node03 Secondary/Inconsistent  Connected  SyncSource C\n"
        ));
        let line =
            "node01  cs:Connected/SyncSource ro:Primary/Secondary/Secondary ds:UpToDate/UpToDate/Inconsistent C ";
        assert!(text.contains(line), "{text}");
        for node in ["node02", "node03"] {
            let line = format!("  {node}  cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C ");
            assert!(text.contains(&line), "{text}");
        }
    }

    #[test]
    fn sizes_and_numbers_are_easy_to_read() {
        assert_eq!([size(512), size(1536), size(1_572_864)], ["512 MiB", "1.5 GiB", "1.5 TiB"]);
        assert_eq!(
            [thousands(0), thousands(999), thousands(1_000), thousands(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([kib(0), kib(1), kib(1024), kib(1025)], [0, 1, 1, 2]);
    }
}
