//! `cardume bench migrate`: moving a guest on purpose. Live, beside QEMU alone between the same nodes; and by stopping and
//! starting, one guest and a node full of them.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::json;

use super::MigrateArgs;
use super::bare::Bare;
use super::table::columns;
use crate::probe::{Continuity, PingLoss};
use crate::travel::{Travel, Travelled, qemu_downtime};
use crate::{Config, Guests, Lab};

/// How long guests may take to boot, and pings to come back.
const PATIENCE: Duration = Duration::from_secs(60);

const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const BARE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);

/// All migrations, of ours or of the peer's.
#[derive(Debug, Default, Serialize)]
struct Samples {
    total_ms: Vec<f64>,
    downtime_ms: Vec<f64>,
    longest_gap_ms: Vec<f64>,
    lost_pings_10ms: Vec<f64>,
    lost_pings_100ms: Vec<f64>,
}

impl Samples {
    fn add(&mut self, total_ms: f64, downtime_ms: Option<f64>, travel: &Travelled) {
        self.total_ms.push(total_ms);
        self.downtime_ms.extend(downtime_ms);
        self.longest_gap_ms.push(ms(travel.often.longest_gap));
        self.lost_pings_10ms.push(travel.often.lost as f64);
        self.lost_pings_100ms.push(travel.seldom.lost as f64);
    }
}

pub(super) fn run(args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.runs > 0, "--runs: at least one is needed");
    let guests = Guests::find().map_err(anyhow::Error::msg)?;
    let mut config = Config { dir: args.dir.clone(), ..Config::default() };
    config.daemon.extend(guests.daemon_options());
    let lab = Lab::up(config)?;
    say(&format!("Measuring with two nodes and a witness, {} migrations each of a guest of 128 MB.", args.runs));
    lab.form(&["--enabled-hypervisors=kvm", "--master-netdev=br0", "-H", &guests.parameters()])?;
    let (ours, bare) = migrations(&lab, args)?;
    let failover = failovers(&lab, args.runs)?;
    lab.down()?;

    say(&format!("\n{}", beside(&ours, &bare)));
    say(&format!("Bare QEMU: {}.\n", about_bare()));
    say(&alone(&failover));
    if let Some(path) = &args.json {
        let report = json!({
            "machine": crate::machine::describe(),
            "runs": args.runs,
            "bare_qemu": about_bare(),
            "migrate": {"cardume": ours, "bare": bare},
            "failover": failover,
        });
        let text = serde_json::to_string_pretty(&report).context("can't write the results as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn about_bare() -> &'static str {
    "the same machine with the same kernel and a copy of the disk, migrated over TCP between the same nodes, without \
     encryption, with ours' limit of downtime, with its disk in one file that both open; its total begins with the start of the destination's QEMU"
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Types a line on node01 that has to succeed, and returns how long it took.
fn typed(lab: &Lab, line: &str) -> anyhow::Result<Duration> {
    let output = lab.node("node01")?.exec(line.split(' '))?;
    ensure!(output.status.success(), "'{line}' failed: {}{}", output.stdout, output.stderr);
    Ok(output.elapsed)
}

/// Waits until a guest has booted and is no longer in the way of what is measured.
fn booted(lab: &Lab, guest: Ipv4Addr) -> anyhow::Result<()> {
    Ok(Continuity::start(&lab.client()?, guest)?.wait(5, PATIENCE)?)
}

fn migrations(lab: &Lab, args: &MigrateArgs) -> anyhow::Result<(Samples, Samples)> {
    let add = |template, nodes, host, name| {
        format!(
            "gnt-instance add -t {template} -s 1g -o busybox+default -B memory=128 --net 0:ip=10.0.0.{host} -n {nodes} {name}"
        )
    };
    // The disk for QEMU alone is that of an instance with its address.
    typed(lab, &add("file --no-start", "node01", 11, "vm2"))?;
    typed(lab, &add("drbd", "node01:node02", 10, "vm1"))?;
    booted(lab, OURS)?;
    let like = guest_of(lab, "node01", "vm1")?;
    let mut bare = Bare::boot(lab, "node01", like, &file_of(lab, "vm2")?, folder(args))?;
    booted(lab, BARE)?;

    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for run in 1..=args.runs {
        let travel = Travel::begin(lab, OURS)?;
        let total = typed(lab, "gnt-instance migrate -f vm1")?;
        let travel = travel.end()?;
        let downtime = qemu_downtime(&lab.node("node01")?)?;
        ours.add(ms(total), downtime, &travel);

        let travel_bare = Travel::begin(lab, BARE)?;
        let moved = bare.migrate()?;
        let travel_bare = travel_bare.end()?;
        theirs.add(ms(moved.wall), Some(moved.downtime_ms), &travel_bare);
        let show = |what: &str, total: Duration, often: &PingLoss| {
            format!("{what} {:.0} ms, gap {:.0} ms, lost {}", ms(total), ms(often.longest_gap), often.lost)
        };
        say(&format!(
            "{run:>3}: {}; {}",
            show("Cardume", total, &travel.often),
            show("bare QEMU", moved.wall, &travel_bare.often)
        ));
    }
    drop(bare);
    typed(lab, "gnt-instance remove -f vm2")?;
    Ok((ours, theirs))
}

/// A folder for QEMU alone, beside the lab's: inside the nodes that of the lab is not seen.
fn folder(args: &MigrateArgs) -> PathBuf {
    let mut name = args.dir.clone().into_os_string();
    name.push("-bare");
    name.into()
}

/// The process that runs a guest on a node.
fn guest_of(lab: &Lab, node: &str, name: &str) -> anyhow::Result<i32> {
    // The brackets keep grep from finding itself.
    let script = format!("grep -l -a 'guest={name}[,]' /proc/[0-9]*/cmdline | grep -o '[0-9]*'");
    let said = lab.node(node)?.exec(["sh", "-c", &script])?.stdout;
    let inside: i32 =
        said.lines().next().unwrap_or_default().parse().with_context(|| format!("{name} does not run on {node}"))?;
    // Its number inside the node is not its number here, where all of them are seen.
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let is_it = numbers.split_whitespace().nth(1).and_then(|number| number.parse().ok()) == Some(inside);
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_it && String::from_utf8_lossy(&line).contains(&format!("guest={name},")) {
            return Ok(pid);
        }
    }
    bail!("the process of {name} on {node} is not found")
}

/// The file with the disk of an instance on node01, as that node sees it.
fn file_of(lab: &Lab, name: &str) -> anyhow::Result<PathBuf> {
    let found = lab.node("node01")?.exec([
        "find",
        "/srv/ganeti/file-storage",
        "-type",
        "f",
        "-path",
        &format!("*/{name}/*"),
    ])?;
    let file = found.stdout.lines().next().with_context(|| format!("{name} has no disk on node01"))?;
    Ok(file.into())
}

/// Planned failovers.
#[derive(Debug, Default, Serialize)]
struct Failovers {
    /// `gnt-instance failover --shutdown-timeout=0`: nothing of it is the guest's own shutdown or boot.
    besides_guest_ms: Vec<f64>,
    /// `gnt-instance failover`, the guest's own shutdown included.
    orderly_ms: Vec<f64>,
    /// From typing that to the guest's first answer on the other node.
    answers_ms: Vec<f64>,
    /// `gnt-node failover` of a node with one instance.
    node_of_one_ms: Vec<f64>,
    /// `gnt-node failover` of a node with three.
    node_of_three_ms: Vec<f64>,
}

fn failovers(lab: &Lab, runs: u32) -> anyhow::Result<Failovers> {
    let mut figures = Failovers::default();
    for _ in 0..runs {
        figures.besides_guest_ms.push(ms(typed(lab, "gnt-instance failover -f --shutdown-timeout=0 vm1")?));
        booted(lab, OURS)?;
    }
    for _ in 0..runs {
        let begun = Instant::now();
        figures.orderly_ms.push(ms(typed(lab, "gnt-instance failover -f vm1")?));
        booted(lab, OURS)?;
        figures.answers_ms.push(ms(begun.elapsed()));
    }
    for _ in 0..runs {
        figures.node_of_one_ms.push(ms(typed(lab, &format!("gnt-node failover -f {}", home(lab)?))?));
        booted(lab, OURS)?;
    }
    let home = home(lab)?;
    let other = if home == "node01" { "node02" } else { "node01" };
    for host in [11, 12] {
        let name = format!("vm{}", host - 9);
        typed(
            lab,
            &format!(
                "gnt-instance add -t drbd -s 1g -o busybox+default -B memory=128 --net 0:ip=10.0.0.{host} -n {home}:{other} {name}"
            ),
        )?;
        booted(lab, Ipv4Addr::new(10, 0, 0, host))?;
    }
    for run in 0..runs {
        let node = if run % 2 == 0 { &*home } else { other };
        figures.node_of_three_ms.push(ms(typed(lab, &format!("gnt-node failover -f {node}"))?));
        for host in [10, 11, 12] {
            booted(lab, Ipv4Addr::new(10, 0, 0, host))?;
        }
    }
    Ok(figures)
}

/// The node on which vm1 runs.
fn home(lab: &Lab) -> anyhow::Result<String> {
    let list = lab.node("node01")?.exec(["gnt-instance", "list", "--no-headers", "-o", "pnode", "vm1"])?;
    Ok(list.stdout.trim().to_owned())
}

/// Least, middle and greatest.
fn spread(samples: &[f64]) -> (f64, f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    let middle = if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.saturating_sub(1)), at(half)) };
    (at(0), middle, at(sorted.len().saturating_sub(1)))
}

fn shown(samples: &[f64]) -> String {
    if samples.is_empty() {
        return "-".to_owned();
    }
    let (least, middle, most) = spread(samples);
    format!("{middle:.0} ({least:.0} to {most:.0})")
}

/// Ours beside the peer's.
fn beside(ours: &Samples, bare: &Samples) -> String {
    let mut rows = vec![["Live migration", "Cardume", "Bare QEMU", "Ratio", "Target"].map(str::to_owned)];
    let mut row = |name: &str, ours: &[f64], bare: &[f64], ratio: bool, target: &str| {
        let (ours_middle, bare_middle) = (spread(ours).1, spread(bare).1);
        let ratio =
            if ratio && bare_middle > 0.0 { format!("{:.2}", ours_middle / bare_middle) } else { "-".to_owned() };
        rows.push([name.to_owned(), shown(ours), shown(bare), ratio, target.to_owned()]);
    };
    row("total, ms", &ours.total_ms, &bare.total_ms, true, "under 1000");
    row("downtime by QEMU, ms", &ours.downtime_ms, &bare.downtime_ms, true, "");
    row("longest gap between answers, ms", &ours.longest_gap_ms, &bare.longest_gap_ms, true, "ratio at most 1.2");
    row("lost of pings every 10 ms", &ours.lost_pings_10ms, &bare.lost_pings_10ms, false, "");
    row("lost of pings every 100 ms", &ours.lost_pings_100ms, &bare.lost_pings_100ms, false, "0");
    columns(&rows, 1..=3)
}

/// What has no peer beside it.
fn alone(failovers: &Failovers) -> String {
    let three_to_one = spread(&failovers.node_of_three_ms).1 / spread(&failovers.node_of_one_ms).1;
    let mut rows = vec![["Planned failover", "Cardume", "Target"].map(str::to_owned)];
    let mut row = |name: &str, value: String, target: &str| rows.push([name.to_owned(), value, target.to_owned()]);
    row("one, besides the guest's shutdown and boot, ms", shown(&failovers.besides_guest_ms), "under 500");
    row("one, with the guest's shutdown, ms", shown(&failovers.orderly_ms), "");
    row("one, until the guest answers, ms", shown(&failovers.answers_ms), "");
    row("node with one, ms", shown(&failovers.node_of_one_ms), "");
    row("node with three, ms", shown(&failovers.node_of_three_ms), "");
    row("three to one", format!("{three_to_one:.2}"), "at most 1.3");
    columns(&rows, 1..=1)
}
