//! Readable tables: one line a step, `<milliseconds> <event> | <effects>`. A table is run and printed anew, and has to come out
//! as it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ha::{Mutant, Now, Times, grants, guard, message};
use model::{Evidence, Incarnation, Life, NodeId, RunId, Uuid};

pub fn inc() -> Incarnation {
    Incarnation::first(Uuid::from_u128(0x11))
}

pub fn ms(ms: u64) -> Now {
    Duration::from_millis(ms)
}

/// The round figures that the tables are written in: h 100 ms, L 1000 ms, W 1101 ms.
pub fn times() -> Times {
    Times { renew: ms(100), slack: ms(100), park: ms(5000), ..Times::for_lease(ms(1000)) }
}

/// What takes a line's event and says what came of it.
pub trait Machine {
    fn take(&mut self, now: Now, words: &[&str]) -> String;
}

/// Runs a table and compares.
pub fn check(machine: impl Machine, table: &str) {
    let (written, came) = run(machine, table);
    assert_eq!(came.join("\n"), written.join("\n"));
}

/// A mutant does not do what the table says.
pub fn must_differ(machine: impl Machine, table: &str, mutant: Mutant) {
    let (written, came) = run(machine, table);
    assert_ne!(came, written, "{mutant:?} was not found");
}

fn run(mut machine: impl Machine, table: &str) -> (Vec<String>, Vec<String>) {
    let mut written = Vec::new();
    let mut came = Vec::new();
    for line in table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|words| !words.is_empty())
    {
        let bar = line.iter().position(|word| *word == "|").unwrap_or(line.len());
        let (event, effects) = (&line[..bar], &line[(bar + 1).min(line.len())..]);
        let now = ms(event[0].parse().expect("a line begins with the time"));
        written.push(format!("{} | {}", event.join(" "), effects.join(" ")));
        came.push(format!("{} | {}", event.join(" "), machine.take(now, &event[1..])));
    }
    (written, came)
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is no number"))
}

fn runs(set: &BTreeSet<RunId>) -> String {
    set.iter().map(|run| run.to_string()).collect::<Vec<_>>().join(",")
}

fn nodes(set: &BTreeSet<NodeId>) -> String {
    set.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(",")
}

/// The guard of node 1.
pub struct GuardTable(guard::Guard);

impl GuardTable {
    pub fn new(mutant: Option<Mutant>) -> Self {
        Self(guard::Guard::new(times(), Now::ZERO).with(mutant))
    }
}

impl Machine for GuardTable {
    fn take(&mut self, now: Now, words: &[&str]) -> String {
        use guard::{Effect, Event};
        let identity = |life: &str| guard::Identity { inc: inc(), node: NodeId(1), life: Life(number(life)) };
        let event = match words {
            ["daemon", "none"] => Event::Daemon(None),
            ["daemon", life] => Event::Daemon(Some(identity(life))),
            ["run", run, rest @ ..] => Event::Register { run: RunId(number(run)), protected: rest.is_empty() },
            ["ended", run] => Event::Ended(RunId(number(run))),
            // granted <q> <life> <term> <master> <runs>
            ["granted", q, life, term, master, rest @ ..] => {
                let grant = message::Grant {
                    inc: inc(),
                    term: number(term),
                    life: Life(number(life)),
                    q: number(q),
                    lease_ms: 1000,
                    master: NodeId(number(master)),
                    runs: rest.iter().map(|run| RunId(number(run))).collect(),
                };
                Event::Answer { q: number(q), answer: message::Answer::Granted(grant) }
            }
            // over <q> <life> <term>
            ["over", q, life, term] => {
                let answer = message::Answer::Ended { now: Life(number(life)), term: number(term) };
                Event::Answer { q: number(q), answer }
            }
            ["not-master", q, hint] => {
                let hint = hint.parse().ok().map(NodeId);
                Event::Answer { q: number(q), answer: message::Answer::NotMaster(hint) }
            }
            ["tick"] => Event::Tick,
            other => panic!("{other:?} is no event of a guard"),
        };
        let mut out = Vec::new();
        self.0.step(now, event, &mut out);
        let said = out.iter().map(|effect| match effect {
            Effect::Renew { q, identity, without_address, master } => {
                let to = master.map_or("all".to_owned(), |master| master.to_string());
                let without = if *without_address > 0 { format!(" without {without_address}") } else { String::new() };
                format!("renew {q} as {} to {to}{without}", identity.life)
            }
            Effect::Lease(until) => format!("lease {}", until.as_millis()),
            Effect::Stop(set) => format!("stop {}", runs(set)),
            Effect::Continue(set) => format!("continue {}", runs(set)),
            Effect::Kill(set) => format!("kill {}", runs(set)),
            Effect::DropAddress => "drop-address".to_owned(),
            Effect::ReplaceDaemon => "replace-daemon".to_owned(),
        });
        said.collect::<Vec<_>>().join("; ")
    }
}

/// A master's leases.
pub struct GrantsTable(grants::Grants);

impl GrantsTable {
    pub fn new(mutant: Option<Mutant>) -> Self {
        Self(grants::Grants::new(times(), inc(), Now::ZERO).with(mutant))
    }
}

impl Machine for GrantsTable {
    fn take(&mut self, now: Now, words: &[&str]) -> String {
        use grants::{Effect, Event, Standing};
        // `2:7a`: node 2 in life 7, armed; `2:7ad`: that life is dead.
        let standing = |word: &&str| {
            let (node, rest) = word.split_once(':').expect("a node and its life");
            let life = Life(number(rest.trim_end_matches(['a', 'd'])));
            (NodeId(number(node)), Standing { life, dead: rest.contains('d'), armed: rest.contains('a') })
        };
        let event = match words {
            ["nodes", list @ ..] => Event::Nodes(list.iter().map(standing).collect::<BTreeMap<_, _>>()),
            ["voters", sets @ ..] => {
                let set = |word: &&str| word.split(',').map(|node| NodeId(number(node))).collect();
                Event::Voters(sets.iter().map(set).collect())
            }
            // renew <node> <life> <q>
            ["renew", node, life, q, rest @ ..] => Event::Renew(message::Renew {
                inc: inc(),
                node: NodeId(number(node)),
                life: Life(number(life)),
                q: number(q),
                without_address: rest.first().map_or(0, |term| number(term)),
            }),
            ["confirmed", voter, round] => Event::Confirmed { voter: NodeId(number(voter)), round: number(round) },
            ["fenced", voter, age] => Event::Fenced { voter: NodeId(number(voter)), age: ms(number(age)) },
            ["pardoned", node, life] => Event::Pardoned { node: NodeId(number(node)), life: Life(number(life)) },
            ["tick"] => Event::Tick,
            other => panic!("{other:?} is no event of a master"),
        };
        let mut out = Vec::new();
        self.0.step(now, event, &mut out);
        let said = out.iter().map(|effect| match effect {
            Effect::Confirm { round } => format!("confirm {round}"),
            Effect::Fence { voters } => format!("fence {}", nodes(voters)),
            Effect::Grant { node, life, q } => format!("grant {node}:{life} {q}"),
            Effect::Refuse { node, q, now } => format!("refuse {node} {q}, it is {now}"),
            Effect::Condemn { node, life, evidence } => match evidence {
                Evidence::LeaseEnded { silent_ms, wait_ms, of_older_master, voters } => {
                    let of = if *of_older_master { " of an older master" } else { "" };
                    let voters = nodes(&voters.iter().copied().collect());
                    format!("condemn {node}:{life} after {silent_ms} of {wait_ms}{of} by {voters}")
                }
                other => panic!("a master's leases know of nothing like {other:?}"),
            },
        });
        said.collect::<Vec<_>>().join("; ")
    }
}
