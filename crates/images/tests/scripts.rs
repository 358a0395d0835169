//! Scripts run, fail with their own words, and leave nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are tests.

mod common;

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use common::{define, script};
use images::{Environment, Error, System, create, find, verify};
use model::ParamValue;
use nix::libc::ENXIO;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A definition with this script `create`, and beside it pipes, `../../<name>` for the script: `started`, through which it
/// says that it runs, `never`, from which nothing ever comes, and `leader`.
struct Case {
    dir: tempfile::TempDir,
    system: System,
}

impl Case {
    fn new(create: &str) -> Case {
        let dir = tempfile::tempdir().unwrap();
        define(&dir.path().join("os"), "busybox", create);
        let system = find(&[dir.path().join("os")], "busybox+default").unwrap();
        let case = Case { dir, system };
        for pipe in ["started", "never", "leader"] {
            mkfifo(&case.path(pipe), Mode::from_bits_truncate(0o600)).unwrap();
        }
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn environment(&self) -> Environment {
        Environment { instance: "vm1".to_owned(), ..Environment::default() }
    }

    async fn create(&self) -> Result<(), Error> {
        create(&self.system, &self.environment(), &self.path("log/os/add.log"), &self.path("run/disk.lock")).await
    }

    fn lock_is_free(&self) -> bool {
        File::open(self.path("run/disk.lock")).unwrap().try_lock().is_ok()
    }
}

impl Drop for Case {
    /// Lets what reads from `never` end, if a test failed before it was killed.
    fn drop(&mut self) {
        if let Ok(pipe) = pipe::OpenOptions::new().read_write(true).open_sender(self.path("never")) {
            let _ = pipe.try_write(&[b'\n'; 16]);
        }
    }
}

/// So long is waited for what would otherwise never come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until somebody writes a line into a pipe.
async fn line(pipe: PathBuf) -> String {
    let pipe = pipe::OpenOptions::new().read_write(true).open_receiver(pipe).unwrap();
    let mut text = String::new();
    timeout(PATIENCE, BufReader::new(pipe).read_line(&mut text)).await.expect("nothing was written").unwrap();
    text.trim().to_owned()
}

/// Waits until nobody reads from a pipe.
async fn nobody_reads(pipe: &Path) {
    let left = async {
        while pipe::OpenOptions::new().open_sender(pipe).map_err(|error| error.raw_os_error()).err()
            != Some(Some(ENXIO))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, left).await.expect("somebody still reads");
}

#[tokio::test]
async fn a_script_gets_its_environment_and_nothing_else() {
    let case = Case::new("pwd; env | grep -v '^_=' | sort; cat; echo oops >&2");
    case.create().await.unwrap();
    let log = fs::read_to_string(case.path("log/os/add.log")).unwrap();
    let mut lines = log.lines();
    assert_eq!(lines.next(), case.system.path.to_str(), "it runs in its folder");
    assert!(log.contains("\nINSTANCE_NAME=vm1\n") && log.contains("\nOS_API_VERSION=20\n"), "{log}");
    assert!(log.ends_with("\noops\n"), "stdin was not empty, or errors are not in the log: {log}");
    assert!(!log.contains("CARGO"), "the daemon's own environment got in: {log}");
    assert!(case.lock_is_free());
}

#[tokio::test]
async fn a_failure_has_the_last_lines_of_its_own_log() {
    let case = Case::new("i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo line $i; done; exit 3");
    fs::create_dir_all(case.path("log/os")).unwrap();
    fs::write(case.path("log/os/add.log"), "of an earlier run\n").unwrap();
    let lines: Vec<_> = (11..=30).map(|number| format!("line {number}")).collect();
    let text =
        format!("OS create script failed (exited with exit code 3), last lines in the log file:\n{}", lines.join("\n"));
    assert_eq!(case.create().await.unwrap_err().to_string(), text);

    let case = Case::new("exit 1");
    fs::create_dir_all(case.path("log/os")).unwrap();
    fs::write(case.path("log/os/add.log"), "of an earlier run\n").unwrap();
    assert_eq!(
        case.create().await.unwrap_err().to_string(),
        "OS create script failed (exited with exit code 1), it wrote nothing to its log file"
    );

    let case = Case::new("kill -9 $$");
    let error = case.create().await.unwrap_err();
    assert!(error.to_string().starts_with("OS create script failed (terminated by signal 9), "), "{error}");
}

#[tokio::test]
async fn a_script_that_cannot_be_run_says_so() {
    let case = Case::new("exit 0");
    fs::write(case.system.path.join("create"), "#!/no/such/shell\n").unwrap();
    let error = case.create().await.unwrap_err();
    assert_eq!(error.to_string(), format!("can't run {}", case.system.path.join("create").display()));
    assert!(case.lock_is_free());
}

#[tokio::test]
async fn what_a_script_leaves_running_ends_with_it() {
    // In its group, and in a session of its own.
    let case = Case::new("cat ../../never & setsid cat ../../never & exit 0");
    case.create().await.unwrap();
    assert!(case.lock_is_free(), "a process still has the lock");
    nobody_reads(&case.path("never")).await;

    // One without a lock, which is known only by its group.
    script(
        &case.system.path,
        "verify",
        "(exec 7<>../../never; echo there > ../../started; read nothing <&7) & read there < ../../started",
    );
    verify(&case.system, &case.environment()).await.unwrap();
    nobody_reads(&case.path("never")).await;
}

#[tokio::test]
async fn dropping_the_future_kills_the_script_and_its_children() {
    let case = Case::new("cat ../../never & echo started > ../../started; cat ../../never");
    {
        let running = case.create();
        let started = line(case.path("started"));
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => panic!("ended: {ended:?}"),
            line = started => assert_eq!(line, "started"),
        }
    }
    // A blocking lock: it is got when the last of them is gone.
    let lock = File::open(case.path("run/disk.lock")).unwrap();
    let (got, free) = oneshot::channel();
    std::thread::spawn(move || got.send(lock.lock()));
    timeout(PATIENCE, free).await.expect("one of them lives").unwrap().unwrap();
}

#[tokio::test]
async fn a_second_run_ends_the_first_and_does_not_overlap_it() {
    let case = Case::new(
        "if [ -e ../../first ]; then ! kill -0 $(cat ../../first); exit; fi
         echo $$ > ../../first; echo started > ../../started; cat ../../never",
    );
    let first = case.create();
    let second = async {
        line(case.path("started")).await;
        case.create().await
    };
    let (first, second) = timeout(PATIENCE, async { tokio::join!(first, second) }).await.expect("the first lives");
    let error = first.unwrap_err();
    assert!(error.to_string().contains("terminated by signal 9"), "{error}");
    second.unwrap();
}

/// Ends a process when the test does, however it does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Set in the process that plays a daemon which is killed while a script runs: the folder of the case.
const EARLIER_DAEMON: &str = "IMAGES_TEST_EARLIER_DAEMON";

#[tokio::test]
async fn what_an_earlier_daemon_left_is_killed_before_the_step_is_repeated() {
    if let Some(dir) = env::var_os(EARLIER_DAEMON) {
        let dir = Path::new(&dir);
        let system = find(&[dir.join("os")], "busybox+default").unwrap();
        let environment = Environment::default();
        let _ = create(&system, &environment, &dir.join("log/os/add.log"), &dir.join("run/disk.lock")).await;
        return;
    }
    // The script dies with its daemon; its child, which ignores all signals that can be ignored, does not.
    let case = Case::new(
        "exec 7> ../../leader
         (exec 7>&-; trap '' HUP INT TERM PIPE; echo started > ../../started; cat ../../never); exit 1",
    );
    let mut leader = pipe::OpenOptions::new().open_receiver(case.path("leader")).unwrap();
    let daemon = Command::new(env::current_exe().unwrap())
        .args(["--exact", "what_an_earlier_daemon_left_is_killed_before_the_step_is_repeated"])
        .env(EARLIER_DAEMON, case.dir.path())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut daemon = Ended(daemon);
    assert_eq!(line(case.path("started")).await, "started");
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    let nothing = timeout(PATIENCE, leader.read_u8()).await.expect("the script outlived its daemon");
    assert_eq!(nothing.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(!case.lock_is_free(), "nothing was left over: the test shows nothing");

    script(&case.system.path, "create", "echo anew");
    case.create().await.unwrap();
    assert!(case.lock_is_free());
    nobody_reads(&case.path("never")).await;
}

#[tokio::test]
async fn verify_lets_the_system_refuse_its_parameters() {
    let case = Case::new("exit 0");
    verify(&case.system, &case.environment()).await.unwrap();
    script(&case.system.path, "verify", "echo \"$* of $OSP_RELEASE\"; [ -n \"$OSP_RELEASE\" ]");
    let error = verify(&case.system, &case.environment()).await.unwrap_err();
    assert!(error.to_string().starts_with("OS verify script failed (exited with exit code 1), "), "{error}");
    assert!(error.to_string().ends_with("\nparameters of "), "{error}");
    let osparams = [("release".to_owned(), ParamValue::Text("sid".to_owned()))].into();
    verify(&case.system, &Environment { osparams, ..case.environment() }).await.unwrap();
}
