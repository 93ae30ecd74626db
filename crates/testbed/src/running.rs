//! A program that runs on a host while the caller continues.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program on a [`Host`](crate::Host) with its output collected; dropping the value kills it.
pub struct Running {
    child: Child,
    output: Arc<Output>,
    /// How many lines earlier calls of `wait_for_line` have consumed.
    passed: usize,
}

/// A line printed by a program.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it arrived.
    pub at: Instant,
    /// Where it was printed.
    pub stream: Stream,
    /// The line without its end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// The two outputs of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Running {
    /// Starts a command made by [`Host::command`](crate::Host::command), with an empty stdin.
    ///
    /// # Errors
    ///
    /// When it cannot start. If the program does not exist on the host, only its stderr and exit status show it.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let output = Arc::new(Output::default());
        output.lock().open_streams = 2;
        collect(child.stdout.take().context("no stdout")?, Stream::Stdout, &output);
        collect(child.stderr.take().context("no stderr")?, Stream::Stderr, &output);
        Ok(Self { child, output, passed: 0 })
    }

    /// Returns every line printed so far.
    pub fn lines(&self) -> Vec<Line> {
        self.output.lock().lines.clone()
    }

    /// Waits for a line that contains `wanted` and returns it.
    ///
    /// Each call continues after the line that the previous one returned, so each line is found once.
    ///
    /// # Errors
    ///
    /// When no such line arrives within `timeout` or before the program closes its outputs; the message has all its
    /// lines.
    pub fn wait_for_line(&mut self, wanted: &str, timeout: Duration) -> Result<Line> {
        let passed = self.passed;
        let find = |state: &State| {
            let found =
                state.lines.iter().enumerate().skip(passed).find(|(_, line)| line.text.contains(wanted));
            found.map(|(index, line)| (index, line.clone()))
        };
        let (state, _) = self
            .output
            .changed
            .wait_timeout_while(self.output.lock(), timeout, |state| {
                state.open_streams > 0 && find(state).is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        let Some((index, line)) = find(&state) else {
            let why = if state.open_streams == 0 {
                "before the program's output ended".to_owned()
            } else {
                format!("within {timeout:?}")
            };
            bail!("no line with `{wanted}` {why}; it printed:\n{state}");
        };
        self.passed = index + 1;
        drop(state);
        Ok(line)
    }

    /// Returns the process ID of the program itself, as this process sees it.
    ///
    /// # Errors
    ///
    /// When the program has ended.
    pub fn pid(&self) -> Result<u32> {
        // `nsenter` enters a process namespace by a fork, so the program is its child; just after the start, it may
        // not exist yet.
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(pid) = program_below(self.child.id()) {
                return Ok(pid);
            }
            thread::sleep(Duration::from_millis(2));
            if !Path::new(&format!("/proc/{}/exe", self.child.id())).exists() {
                break;
            }
        }
        bail!("the program has ended; it printed:\n{}", self.output.lock())
    }

    /// Returns the root directory of the program, through which this process reaches the files of its host
    /// (`proc_pid_root(5)`).
    ///
    /// # Errors
    ///
    /// When the program has ended.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(Path::new("/proc").join(self.pid()?.to_string()).join("root"))
    }

    /// Sends a signal to the program itself.
    ///
    /// # Errors
    ///
    /// When the program has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()?.try_into()?), signal).context("cannot send the signal")
    }

    /// Waits until the program ends and returns its exit status; by then all its lines have arrived.
    ///
    /// # Errors
    ///
    /// When it still runs after `timeout`; the message has its lines.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                // A daemon that the program left behind may hold the outputs open for ever.
                let grace = Duration::from_secs(3);
                let state = self.output.lock();
                drop(self.output.changed.wait_timeout_while(state, grace, |state| state.open_streams > 0));
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("the program still runs after {timeout:?}; it printed:\n{}", self.output.lock());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has already ended.
        let _ = self.signal(Signal::SIGKILL);
        let nsenter = self.child.id().try_into().map(Pid::from_raw);
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            // nsenter, which ends with its program, also stops itself when its program is stopped.
            let _ = nsenter.map(|nsenter| kill(nsenter, Signal::SIGCONT));
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The state that the collecting threads share with the owner.
#[derive(Default)]
struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    open_streams: usize,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single push or subtraction, so a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(out, "  {}", line.text))
    }
}

/// Starts a thread that appends the lines of `input` until it ends.
fn collect(input: impl Read + Send + 'static, stream: Stream, output: &Arc<Output>) {
    let output = Arc::clone(output);
    thread::spawn(move || {
        for bytes in BufReader::new(input).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned();
            output.lock().lines.push(Line { at: Instant::now(), stream, text });
            output.changed.notify_all();
        }
        output.lock().open_streams -= 1;
        output.changed.notify_all();
    });
}

/// Finds the process that the `nsenter` with the ID `parent` started and that has become another program.
fn program_below(parent: u32) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // proc_pid_stat(5): "pid (name) state parent …", and the name may contain parentheses.
        let (pid_and_name, rest) = stat.rsplit_once(") ")?;
        let is_child = rest.split(' ').nth(1)? == parent.to_string();
        (is_child && !pid_and_name.ends_with("(nsenter")).then_some(pid)
    })
}
