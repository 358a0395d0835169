//! What we depend on, and what must never slip in through somebody's default features.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests: a failure is a failed test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Beginnings of names, and why we don't want them.
const UNWANTED: &[(&str, &str)] = &[
    ("aws-lc", "C and assembly that need cmake; rustls works with ring"),
    ("openssl", "C; TLS is rustls"),
    ("native-tls", "OpenSSL; TLS is rustls"),
    ("protobuf", "needs a code generator"),
    ("prost-build", "needs protoc when it is built"),
    ("cmake", "builds C"),
    ("bindgen", "needs libclang when it is built"),
];

/// Licences that suit a work under Apache-2.0 which is given away as one binary.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A `Cargo.lock`: for each package, by name, whether it is ours and what it needs.
struct Lock(BTreeMap<String, (bool, BTreeSet<String>)>);

impl Lock {
    /// Reads what cargo has written: one `[[package]]` after another, one key or list item a line.
    fn parse(text: &str) -> Self {
        let mut packages = BTreeMap::new();
        for block in text.split("[[package]]").skip(1) {
            let value = |key: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(key))?;
                Some(line.trim_start_matches([' ', '=']).trim_matches('"').to_owned())
            };
            let (_, list) = block.split_once("dependencies = [").unwrap_or_default();
            let items = list.split(']').next().unwrap().lines().map(|line| line.trim().trim_matches([',', '"']));
            // `name`, or `name version` where there are several
            let needs = items.filter_map(|item| item.split(' ').next()).filter(|name| !name.is_empty());
            let entry: &mut (bool, BTreeSet<String>) = packages.entry(value("name").unwrap()).or_default();
            entry.0 |= value("source").is_none();
            entry.1.extend(needs.map(str::to_owned));
        }
        Self(packages)
    }

    /// How a package comes to be there: the shortest way from one of ours, `node -> rustls -> ring`.
    fn way_to(&self, package: &str) -> String {
        let ours = self.0.iter().filter(|(_, (ours, _))| *ours).map(|(name, _)| name.as_str());
        let mut ways: VecDeque<Vec<&str>> = ours.map(|name| vec![name]).collect();
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            let last = way[way.len() - 1];
            if last == package {
                return way.join(" -> ");
            }
            if let (true, Some((_, needs))) = (seen.insert(last), self.0.get(last)) {
                ways.extend(needs.iter().map(|next| way.iter().copied().chain([next.as_str()]).collect()));
            }
        }
        format!("{package}, which nothing needs")
    }

    fn unwanted(&self) -> Vec<String> {
        let reason = |name: &str| UNWANTED.iter().find(|(start, _)| name.starts_with(start)).map(|(_, why)| *why);
        let found = self.0.keys().filter_map(|name| Some(format!("{} ({})", self.way_to(name), reason(name)?)));
        found.collect()
    }
}

/// Whether one of the choices that an SPDX expression leaves needs nothing but [`LICENCES`]. An exception (`WITH`) only
/// permits more.
fn suits(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let suits = any_of(&mut words);
    suits && words.next().is_none()
}

type Words<'a, 'b> = &'b mut std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: Words<'_, '_>) -> bool {
    let mut suits = all_of(words);
    while words.next_if_eq(&"OR").is_some() {
        suits |= all_of(words);
    }
    suits
}

fn all_of(words: Words<'_, '_>) -> bool {
    let mut suits = one(words);
    while words.next_if_eq(&"AND").is_some() {
        suits &= one(words);
    }
    suits
}

fn one(words: Words<'_, '_>) -> bool {
    match words.next() {
        Some("(") => any_of(words) & words.next_if_eq(&")").is_some(),
        Some(name) => {
            if words.next_if_eq(&"WITH").is_some() {
                words.next();
            }
            LICENCES.contains(&name)
        }
        None => false,
    }
}

#[test]
fn nothing_unwanted_is_in_the_lock_files() {
    for file in ["Cargo.lock", "guest/Cargo.lock"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let lock = Lock::parse(&text);
        assert!(!lock.0.is_empty(), "{file} could not be read");
        let unwanted = lock.unwanted();
        assert!(unwanted.is_empty(), "{file} has what we don't want:\n{}", unwanted.join("\n"));
    }
}

#[test]
fn every_dependency_has_a_licence_that_suits() {
    let lock = Lock::parse(&std::fs::read_to_string(root().join("Cargo.lock")).unwrap());
    // What is built here: what others would build on other systems need not be on this one.
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["tree", "--workspace", "--offline", "--locked", "--edges", "normal,build,dev"])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"])
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let packages: BTreeSet<(&str, &str)> = text
        .lines()
        // A package that is a dependency of its own tests is marked with a star in spite of --no-dedupe.
        .filter_map(|line| line.trim_end_matches(" (*)").split_once('|'))
        .collect();
    assert!(packages.len() > 50, "cargo tree names only {} packages", packages.len());
    let bad: Vec<String> = packages
        .iter()
        .filter(|(_, licence)| !suits(licence))
        .map(|(package, licence)| {
            let name = package.split(' ').next().unwrap();
            format!("{} ('{licence}')", lock.way_to(name))
        })
        .collect();
    assert!(bad.is_empty(), "licences that don't suit ours:\n{}", bad.join("\n"));
}

#[test]
fn an_unwanted_package_is_found_and_its_way_told() {
    let lock = Lock::parse(
        r#"
version = 4

[[package]]
name = "node"
version = "0.1.0"
dependencies = [
 "rustls 0.23.1",
]

[[package]]
name = "rustls"
version = "0.23.1"
source = "registry+https://github.com/rust-lang/crates.io-index"
dependencies = [
 "aws-lc-rs",
 "ring",
]

[[package]]
name = "ring"
version = "0.17.0"
source = "registry+https://github.com/rust-lang/crates.io-index"

[[package]]
name = "aws-lc-rs"
version = "1.0.0"
source = "registry+https://github.com/rust-lang/crates.io-index"
"#,
    );
    assert_eq!(
        lock.unwanted(),
        ["node -> rustls -> aws-lc-rs (C and assembly that need cmake; rustls works with ring)"]
    );
}

#[test]
fn licences_are_read_as_spdx_means_them() {
    for (expression, good) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0-only OR MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception OR MIT", true),
        ("MIT AND BSD-3-Clause OR GPL-2.0", true),
        ("GPL-3.0-or-later", false),
        ("LGPL-2.1-only", false),
        ("MIT AND AGPL-3.0-only", false),
        ("(MIT OR Apache-2.0) AND LGPL-3.0-or-later", false),
        ("OpenSSL", false),
        ("(MIT", false),
        ("MIT Apache-2.0", false),
        ("", false),
    ] {
        assert_eq!(suits(expression), good, "{expression:?}");
    }
}
