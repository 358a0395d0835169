//! A lab as a whole, and its nodes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use network::netns::NetNs;
use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::cables::{self, Cable, Cut};
use crate::error::Error;
use crate::exec::{Exec, Output, environment};
use crate::init::{COMMAND, Orders, PATIENCE};
use crate::layout::{self, Files, MAX_NODES, SWITCH};
use crate::mounts::MOUNT_POINTS;
use crate::process::{Process, end};
use crate::record::{DirLock, LabLock, Member, Record, Role, boot};
use crate::sys::Namespaces;

/// Names under which the one binary is called inside a node.
const COMMANDS: [&str; 11] = [
    "gnt-cluster",
    "gnt-node",
    "gnt-instance",
    "gnt-job",
    "gnt-os",
    "gnt-debug",
    "gnt-backup",
    "gnt-group",
    "gnt-network",
    "gnt-storage",
    "gnt-filter",
];

/// Where the daemon of a node listens for local commands.
const API_SOCKET: &str = "run/cardume/api.sock";
/// How long a daemon may take to listen there.
const DAEMON: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What a lab is to be like.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory in which everything of the lab is; it is made, and removed at the end.
    pub dir: PathBuf,
    /// How many nodes, besides the witness.
    pub nodes: u8,
    /// Whether there is a witness.
    pub witness: bool,
    /// The binary that all commands are names of. It is copied: a build does not disturb a lab that runs. Its
    /// `main` must call [`entry`](crate::entry).
    pub binary: PathBuf,
    /// What a node's init runs: the guard, which starts the daemon.
    pub daemon: Vec<String>,
}

impl Default for Config {
    /// Two nodes and a witness, of the running program (or the one that `CARDUME_BIN` names), in
    /// `/var/tmp/cardume-lab` (or the directory that `CARDUME_LAB_DIR` names).
    fn default() -> Config {
        let path =
            |variable, default: &str| std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
        Config {
            dir: path("CARDUME_LAB_DIR", "/var/tmp/cardume-lab"),
            nodes: 2,
            witness: true,
            binary: path("CARDUME_BIN", "/proc/self/exe"),
            daemon: ["cardume", "guard", "--state-dir", "/var/lib/cardume"].map(str::to_owned).to_vec(),
        }
    }
}

/// Waits for the machine's lock for tests that use a lab. Hold it as long as the lab is up.
pub fn lock() -> Result<LabLock, Error> {
    need_root()?;
    LabLock::acquire()
}

fn need_root() -> Result<(), Error> {
    if Uid::effective().is_root() { Ok(()) } else { Err(Error::NotRoot) }
}

/// A running lab. One that was brought [`up`](Lab::up) is taken down when this is dropped, also on a panic,
/// unless it is [kept](Lab::keep).
#[derive(Debug)]
pub struct Lab {
    files: Files,
    owned: bool,
}

/// How a member of a lab is.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its public address.
    pub address: Ipv4Addr,
    /// The number of its PID 1 on the machine; `None` when it is down.
    pub pid: Option<i32>,
    /// What is wrong with its cable to the public network.
    pub public: Option<Cut>,
    /// What is wrong with its cable to the replication network.
    pub replication: Option<Cut>,
}

impl Lab {
    /// Brings up a lab. What an interrupted run left in the same directory is cleared away first; a lab that
    /// runs there is an error.
    pub fn up(config: Config) -> Result<Lab, Error> {
        need_root()?;
        if !(1..=MAX_NODES).contains(&config.nodes) {
            return Err(Error::Count { asked: config.nodes, max: MAX_NODES });
        }
        let dir = std::path::absolute(&config.dir).map_err(Error::file("find", &config.dir))?;
        let files = Files(dir);
        fs::create_dir_all(files.dir()).map_err(Error::file("create", files.dir()))?;
        let lock = DirLock::acquire(files.dir())?.ok_or_else(|| Error::NoLab(files.dir().to_owned()))?;
        clear_remains(&files)?;
        let mut record = Record::new(&config)?;
        record.save(&files)?;
        // From here on an error takes down what is there.
        let lab = Lab { files, owned: true };
        let result = lab.build(&config, &mut record);
        drop(lock);
        result.map(|()| lab)
    }

    fn build(&self, config: &Config, record: &mut Record) -> Result<(), Error> {
        for path in MOUNT_POINTS {
            fs::create_dir_all(path).map_err(Error::file("create", path))?;
        }
        let bin = self.files.bin();
        fs::create_dir_all(&bin).map_err(Error::file("create", &bin))?;
        fs::copy(&config.binary, self.files.binary()).map_err(Error::file("copy", &config.binary))?;
        for name in COMMANDS {
            let link = bin.join(name);
            std::os::unix::fs::symlink("cardume", &link).map_err(Error::file("link", link))?;
        }
        let named: Vec<(String, Ipv4Addr)> =
            record.members.iter().filter_map(|m| Some((m.name.clone(), m.address?))).collect();
        let names: Vec<String> = record.members.iter().map(|m| m.name.clone()).collect();
        for name in &names {
            for dir in [self.files.state(name), self.files.logs(name), self.files.disks(name)] {
                fs::create_dir_all(&dir).map_err(Error::file("create", dir))?;
            }
            let hosts = self.files.hosts(name);
            fs::write(&hosts, layout::hosts(&named)).map_err(Error::file("write", hosts))?;
        }
        names.iter().try_for_each(|name| self.start_member(record, name))
    }

    /// The lab in this directory, whoever brought it up. Dropping it changes nothing.
    pub fn open(dir: &Path) -> Result<Lab, Error> {
        need_root()?;
        let dir = std::path::absolute(dir).map_err(Error::file("find", dir))?;
        let lab = Lab { files: Files(dir), owned: false };
        lab.record()?;
        Ok(lab)
    }

    /// The same lab once more; dropping it changes nothing.
    pub(crate) fn again(&self) -> Lab {
        Lab { files: self.files.clone(), owned: false }
    }

    /// Lets the lab run on when this program ends.
    pub fn keep(mut self) -> Result<(), Error> {
        self.owned = false;
        self.update(|record| {
            record.owner = None;
            Ok(())
        })
    }

    /// Ends everything in the lab at once and removes its directory.
    pub fn down(mut self) -> Result<(), Error> {
        self.owned = false;
        self.take_down()
    }

    fn take_down(&self) -> Result<(), Error> {
        let Some(_lock) = DirLock::acquire(self.files.dir())? else {
            return Ok(());
        };
        if let Some(record) = Record::load(&self.files)? {
            end(&record.processes(), Signal::SIGKILL, Duration::ZERO).map_err(Error::process("end", "the lab"))?;
            clear(&self.files)?;
            fs::remove_dir(self.files.dir()).map_err(Error::file("remove", self.files.dir()))?;
        }
        Ok(())
    }

    /// A node (or the witness, or the client) by name.
    pub fn node(&self, name: &str) -> Result<Node, Error> {
        let record = self.record()?;
        let member = record.member(name)?;
        let address = member.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        Ok(Node { name: name.to_owned(), address, files: self.files.clone() })
    }

    /// The namespace on the public network from which the cluster is observed.
    pub fn client(&self) -> Result<Node, Error> {
        self.node(layout::CLIENT)
    }

    /// How nodes, witness and client are.
    pub fn status(&self) -> Result<Vec<Status>, Error> {
        let members = self.record()?.members;
        let status = |m: Member| {
            Some(Status {
                address: m.address?,
                pid: m.running().map(|p| p.pid),
                name: m.name,
                public: m.public,
                replication: m.replication,
            })
        };
        Ok(members.into_iter().filter_map(status).collect())
    }

    /// Ends everything in a node at once, as pulling its plug would. Its state stays.
    pub fn kill(&self, name: &str) -> Result<(), Error> {
        self.end_member(name, Signal::SIGKILL, Duration::ZERO)
    }

    /// Ends a node in good order: its daemon is asked to end, then everything else in it is killed.
    pub fn stop(&self, name: &str) -> Result<(), Error> {
        self.end_member(name, Signal::SIGTERM, 2 * PATIENCE)
    }

    fn end_member(&self, name: &str, signal: Signal, patience: Duration) -> Result<(), Error> {
        self.update(|record| {
            let switch = switch(record)?;
            let member = record.member_mut(name)?;
            let process = member.running().ok_or_else(|| Error::NotRunning(name.to_owned()))?;
            end(&[process], signal, patience).map_err(Error::process("end", name))?;
            member.process = None;
            cables::unplug(&switch, name)
        })
    }

    /// Starts a node again after [`kill`](Lab::kill) or [`stop`](Lab::stop), with the state that it had. Cuts of
    /// its cables stay.
    pub fn start(&self, name: &str) -> Result<(), Error> {
        self.update(|record| self.start_member(record, name))
    }

    /// Cuts a node's cables.
    pub fn cut(&self, name: &str, cable: Cable, cut: Cut) -> Result<(), Error> {
        self.set_cables(name, |member| {
            if cable.has_public() {
                member.public = Some(cut);
            }
            if cable.has_replication() && member.role == Role::Node {
                member.replication = Some(cut);
            }
        })
    }

    /// Mends both of a node's cables.
    pub fn heal(&self, name: &str) -> Result<(), Error> {
        self.set_cables(name, |member| {
            member.public = None;
            member.replication = None;
        })
    }

    fn set_cables(&self, name: &str, change: impl FnOnce(&mut Member)) -> Result<(), Error> {
        self.update(|record| {
            let switch = switch(record)?;
            let member = record.member_mut(name)?;
            change(member);
            cables::apply(&switch, name, member.public, member.replication)
        })
    }

    /// Waits until a node's daemon accepts local commands.
    pub fn wait_for_daemon(&self, name: &str) -> Result<(), Error> {
        let node = self.node(name)?;
        let deadline = Instant::now() + DAEMON;
        // A unix socket tells nobody that somebody listens on it now: trying is the only way to know.
        while UnixStream::connect(node.api_socket()?).is_err() {
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: "daemon listening".to_owned(),
                    node: name.to_owned(),
                    after: DAEMON,
                    seen: tail(&node.daemon_log()),
                });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn record(&self) -> Result<Record, Error> {
        Record::load(&self.files)?.ok_or_else(|| Error::NoLab(self.files.dir().to_owned()))
    }

    /// Changes the record under the lab's lock. It is saved also when the change fails half-way: what was done
    /// until then is in it.
    fn update<T>(&self, change: impl FnOnce(&mut Record) -> Result<T, Error>) -> Result<T, Error> {
        let none = || Error::NoLab(self.files.dir().to_owned());
        let _lock = DirLock::acquire(self.files.dir())?.ok_or_else(none)?;
        let mut record = self.record()?;
        let result = change(&mut record);
        record.save(&self.files)?;
        result
    }

    fn start_member(&self, record: &mut Record, name: &str) -> Result<(), Error> {
        let member = record.member(name)?;
        if member.running().is_some() {
            return Err(Error::AlreadyRunning(name.to_owned()));
        }
        let failed = || Error::process("start", name);
        let log = self.files.init_log(name);
        let log_file = File::options().create(true).append(true).open(&log).map_err(Error::file("open", &log))?;
        let mut outside = Command::new(self.files.binary())
            .args([COMMAND, name])
            .env_clear()
            .envs(environment())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .map_err(failed())?;
        let stdin = outside.stdin.take();
        let mut answers = outside.stdout.take().map(BufReader::new);
        let mut answer = || -> Result<String, Error> {
            let mut line = String::new();
            if let Some(answers) = &mut answers {
                answers.read_line(&mut line).map_err(failed())?;
            }
            Ok(line.trim().to_owned())
        };
        let gave_up = |answer: &str| {
            let said = answer.strip_prefix("error ").map_or_else(|| tail(&log), str::to_owned);
            Error::Init { node: name.to_owned(), message: said }
        };
        let first = answer()?;
        outside.wait().map_err(failed())?;
        let pid = first.strip_prefix("pid ").and_then(|pid| pid.parse().ok()).ok_or_else(|| gave_up(&first))?;
        let process = Process::of(pid).map_err(failed())?;
        record.member_mut(name)?.process = Some(process);
        record.save(&self.files)?;

        let result = (|| {
            let member = record.member(name)?;
            let inside = cables::namespace(name, Some(process))?;
            match member.role {
                Role::Switch => cables::build_switch(&inside)?,
                Role::Node | Role::Client => cables::connect(&switch(record)?, member, &inside)?,
            }
            let orders = Orders {
                dir: self.files.dir().to_owned(),
                name: name.to_owned(),
                daemon: (member.role == Role::Node).then(|| record.daemon.clone()),
            };
            let mut line = serde_json::to_vec(&orders).map_err(io::Error::from).map_err(failed())?;
            line.push(b'\n');
            if let Some(mut stdin) = stdin {
                stdin.write_all(&line).map_err(failed())?;
            }
            match answer()?.as_str() {
                "ready" => Ok(()),
                other => Err(gave_up(other)),
            }
        })();
        if result.is_err() {
            end(&[process], Signal::SIGKILL, Duration::ZERO).map_err(failed())?;
            record.member_mut(name)?.process = None;
        }
        result
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if thread::panicking() {
            // The only chance to learn what the daemons had to say.
            for status in self.status().unwrap_or_default() {
                let log = tail(&self.files.daemon_log(&status.name));
                if !log.is_empty() {
                    eprintln!("--- end of the log of {}'s daemon\n{log}", status.name);
                }
            }
        }
        if let Err(error) = self.take_down() {
            eprintln!("the lab in {} is not down: {error}", self.files.dir().display());
        }
    }
}

impl Record {
    fn new(config: &Config) -> Result<Record, Error> {
        let member = |name: String, role, address| Member {
            name,
            role,
            address,
            process: None,
            public: None,
            replication: None,
        };
        let (client, address) = layout::client();
        let mut members =
            vec![member(SWITCH.to_owned(), Role::Switch, None), member(client, Role::Client, Some(address))];
        for (name, address) in layout::nodes(config.nodes, config.witness) {
            members.push(member(name, Role::Node, Some(address)));
        }
        let owner = Process::current().map_err(Error::process("find", "this program"))?;
        Ok(Record { boot: boot()?, owner: Some(owner), daemon: config.daemon.clone(), members })
    }
}

fn switch(record: &Record) -> Result<NetNs, Error> {
    cables::namespace(SWITCH, record.member(SWITCH)?.process)
}

/// Makes sure that the directory is empty, and that it was ours to empty.
fn clear_remains(files: &Files) -> Result<(), Error> {
    let Some(record) = Record::load(files)? else {
        // An interruption before the first record leaves at most its half-written file.
        let entries = fs::read_dir(files.dir()).map_err(Error::file("list", files.dir()))?;
        let ours = |name: OsString| name == "lab.json.new";
        let foreign = entries.filter_map(Result::ok).any(|entry| !ours(entry.file_name()));
        return if foreign { Err(Error::NotALab(files.dir().to_owned())) } else { Ok(()) };
    };
    match record.owner {
        Some(owner) if owner.is_alive() => {
            return Err(Error::InUse { dir: files.dir().to_owned(), pid: owner.pid });
        }
        None if record.members.iter().any(|m| m.running().is_some()) => {
            return Err(Error::Running(files.dir().to_owned()));
        }
        _ => {}
    }
    end(&record.processes(), Signal::SIGKILL, Duration::ZERO).map_err(Error::process("end", "the remains of a lab"))?;
    clear(files)
}

/// Empties the directory; the record goes last, so that an interruption leaves a lab, not a riddle.
fn clear(files: &Files) -> Result<(), Error> {
    let failed = |path: &Path| Error::file("remove", path.to_owned());
    let record = files.record();
    for entry in fs::read_dir(files.dir()).map_err(failed(files.dir()))? {
        let path = entry.map_err(failed(files.dir()))?.path();
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path).map_err(failed(&path))?;
        } else if path != record {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    match fs::remove_file(&record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&record)(error)),
        _ => Ok(()),
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A node of a lab, or its witness, or the client. It stays the same through kill and start.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name, which is its host name too.
    pub name: String,
    /// Its public address.
    pub address: Ipv4Addr,
    files: Files,
}

impl Node {
    /// Prepares a command; see [`Exec`] for what can be said about it.
    pub fn command<A: Into<OsString>>(&self, args: impl IntoIterator<Item = A>) -> Exec {
        Exec::new(self.clone(), args.into_iter().map(Into::into).collect())
    }

    /// Runs a command inside the node and waits for its end.
    pub fn exec<A: Into<OsString>>(&self, args: impl IntoIterator<Item = A>) -> Result<Output, Error> {
        self.command(args).output()
    }

    /// Its address in the replication network.
    pub fn replication_address(&self) -> Ipv4Addr {
        layout::replication(self.address)
    }

    /// Its state directory (`/var/lib/cardume`) as seen from the machine.
    pub fn state_dir(&self) -> PathBuf {
        self.files.state(&self.name)
    }

    /// Its folder of disks (`/srv/ganeti/file-storage`) as seen from the machine.
    pub fn disks_dir(&self) -> PathBuf {
        self.files.disks(&self.name)
    }

    /// What its daemon writes to standard output and error, as seen from the machine.
    pub fn daemon_log(&self) -> PathBuf {
        self.files.daemon_log(&self.name)
    }

    /// Its daemon's local API socket, as seen from the machine, for as long as the node runs.
    pub fn api_socket(&self) -> Result<PathBuf, Error> {
        Ok(PathBuf::from(format!("/proc/{}/root/{API_SOCKET}", self.process()?.pid)))
    }

    /// The number of its PID 1 on the machine.
    pub fn pid(&self) -> Result<i32, Error> {
        Ok(self.process()?.pid)
    }

    /// Its network namespace.
    pub fn network(&self) -> Result<NetNs, Error> {
        cables::namespace(&self.name, Some(self.process()?))
    }

    fn process(&self) -> Result<Process, Error> {
        let none = || Error::NoLab(self.files.dir().to_owned());
        let record = Record::load(&self.files)?.ok_or_else(none)?;
        record.member(&self.name)?.running().ok_or_else(|| Error::NotRunning(self.name.clone()))
    }

    pub(crate) fn namespaces(&self) -> Result<Namespaces, Error> {
        let process = self.process()?;
        let open = |kind: &str| {
            let path = format!("/proc/{}/ns/{kind}", process.pid);
            File::open(&path).map(Into::into).map_err(Error::file("open", path))
        };
        let opened = Namespaces { net: open("net")?, uts: open("uts")?, pid: open("pid")?, mnt: open("mnt")? };
        // Now that they are open they are the right ones, if the process is still the one that we mean.
        if process.is_alive() { Ok(opened) } else { Err(Error::NotRunning(self.name.clone())) }
    }
}
