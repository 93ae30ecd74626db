//! `cargo xtask demo`: opens and closes a door, for somebody who has never seen port knocking.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anstream::println;
use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use testbed::{Host, Running};

use crate::firewall::{CONFIG_FILE, Firewall};
use crate::tools::{IP, NSENTER, Tools, UNSHARE};

const SEQUENCE: [&str; 3] = ["7101", "8202", "9303"];
/// How long the door stays open: long enough to show on a busy machine who gets in meanwhile.
const OPEN_SECONDS: u64 = 8;
/// Nothing takes as long, unless it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo; it succeeds only if every observation is as expected.
pub(crate) fn run() -> Result<()> {
    let mut tools = Tools::new()?;
    tools.ensure_present(&[IP, UNSHARE, NSENTER])?;
    println!("Building knockd and knock; the first build takes a minute or two.");
    let knockd = build("knockd-cli", "knockd")?;
    let knock = build("knock-client", "knock")?;
    build("testbed", "testbed")?;

    let (net, firewall) = Firewall::closed_net(&knockd, &mut tools)?;
    let stranger = net.stranger()?;
    introduce(&firewall, &net.server, &net.client, &stranger.host);
    let mut timeline = Timeline::new();

    let (server, client) = (&net.server, Person { name: "client$", host: &net.client });
    let other = Person { name: "other$", host: &stranger.host };
    let _service = if firewall.is_real() {
        let set_up = firewall.set_up();
        timeline.heading(if set_up.is_empty() {
            "A service listens on port 22 of the server. Everybody reaches it."
        } else {
            "The server closes its ports; a service listens on port 22."
        });
        for command in &set_up {
            timeline.typed("server#", command);
        }
        let service = server.listen(22)?;
        if set_up.is_empty() {
            timeline.check_port(&client, server, Port::Open)?;
            timeline.check_port(&other, server, Port::Open)?;
        }
        Some(service)
    } else {
        None
    };

    timeline.heading("Start knockd on the server with this configuration:");
    let config = firewall.config(&SEQUENCE, OPEN_SECONDS);
    let (opens, closes) = firewall.says();
    net.server.write_file(CONFIG_FILE, &config)?;
    show_file(&config);
    timeline.typed("server#", &format!("knockd -i any -c {CONFIG_FILE} -v"));
    let arguments = ["-i", "any", "-c", CONFIG_FILE, "-v"];
    timeline.knockd = Some(Running::start(net.server.command(&knockd).args(arguments))?);
    timeline.wait_for_knockd("listening on ")?;

    timeline.heading("Without a knock, port 22 does not answer.");
    timeline.check_port(&client, server, Port::Closed)?;

    timeline.heading("The client knocks: three connection attempts to ports on which nothing listens.");
    timeline.knock(&client, &knock, server)?;
    timeline.wait_for_knockd(opens)?;
    // knockd announces a command just before it runs; the command needs a moment, as a person does to type the next
    // one.
    thread::sleep(Duration::from_millis(200));

    timeline.heading(firewall.opened());
    timeline.check_port(&client, server, Port::Open)?;
    if firewall.is_real() {
        timeline.heading("The other host did not knock, so it stays out, although the door is open.");
        timeline.check_port(&other, server, Port::Closed)?;
    }

    timeline.heading(&format!("Wait: {OPEN_SECONDS} seconds after it opened, the door closes by itself."));
    timeline.wait_for_knockd(closes)?;
    timeline.check_port(&client, server, Port::Closed)?;

    timeline.heading("Clean up.");
    timeline.stop_knockd()?;
    if let Firewall::Guard(knockd) = &firewall {
        timeline.heading("The port stays closed although knockd is gone, until you say otherwise.");
        timeline.check_port(&client, server, Port::Closed)?;
        timeline.typed("server#", "knockd guard --remove");
        server.run(&[knockd, "guard", "--remove"])?;
        timeline.check_port(&client, server, Port::Open)?;
    }
    drop(net);
    timeline.says("All hosts are gone.");
    match tools.installed() {
        [] => println!("\nEverything worked as it should, and this machine is unchanged."),
        packages => println!(
            "\nEverything worked as it should. This machine is unchanged, except for newly installed packages: {}.",
            packages.join(", ")
        ),
    }
    Ok(())
}

/// Builds a program, showing cargo's progress, and returns its path.
fn build(package: &str, bin: &str) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--package", package, "--bin", bin])
        .current_dir(testbed::workspace_root())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo could not build {bin}");
    let path = testbed::build(package, bin)?;
    Ok(path.to_str().context("the path of the build directory is not valid UTF-8")?.to_owned())
}

fn introduce(firewall: &Firewall, server: &Host, client: &Host, stranger: &Host) {
    println!(
        "\n\
         knockd watches for a secret sequence of ports and opens a door for anyone who knocks on them in the right order.\n\n\
         This demo creates three hosts on this machine from Linux namespaces and joins them with virtual cables:\n\
         server  {}, whose port 22 is protected\n\
         client  {}, which knows the sequence\n\
         other   {}, which does not\n\n\
         {}\n\
         The service on port 22 is not ssh but a small program from this project that greets everyone. `nc` below is what\n\
         you would type; here another program from this project makes the connection, so nothing needs to be installed.",
        server.ipv4,
        client.ipv4,
        stranger.ipv4,
        firewall.description()
    );
}

fn show_file(text: &str) {
    for line in text.lines() {
        println!("{QUIET}{:>20}{}{QUIET:#}", "| ", line.replace('\t', "    "));
    }
}

/// A host and the prompt of whoever types there.
struct Person<'a> {
    name: &'static str,
    host: &'a Host,
}

/// The result of a connection attempt.
#[derive(Clone, Copy, PartialEq)]
enum Port {
    Open,
    Closed,
}

/// Prints events with the time since the start, and knockd's lines at their places in between.
struct Timeline {
    start: Instant,
    knockd: Option<Running>,
    /// How many of knockd's lines have been printed.
    shown: usize,
}

const HEADING: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const TYPED: Style = AnsiColor::Cyan.on_default();
const DAEMON: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default().bold();

impl Timeline {
    fn new() -> Self {
        Self { start: Instant::now(), knockd: None, shown: 0 }
    }

    fn heading(&mut self, text: &str) {
        self.catch_up();
        println!("\n{HEADING}{text}{HEADING:#}");
    }

    /// Shows a command that a person types on one of the machines.
    fn typed(&mut self, prompt: &str, command: &str) {
        self.catch_up();
        self.line(Instant::now(), prompt, TYPED, command);
    }

    fn says(&mut self, text: &str) {
        self.catch_up();
        self.line(Instant::now(), "", Style::new(), text);
    }

    /// Prints the new lines of knockd.
    fn catch_up(&mut self) {
        let lines = self.knockd.as_ref().map(Running::lines).unwrap_or_default();
        for line in lines.iter().skip(self.shown).filter(|line| !line.text.is_empty()) {
            self.line(line.at, "knockd:", DAEMON, &line.text);
            if ["still runs as user", "create the user knockd"].iter().any(|words| line.text.contains(words))
            {
                let text = "(only in the demo: an installed knockd has a user of its own for the decoder, and the right to use it)";
                self.line(line.at, "", QUIET, text);
            }
        }
        self.shown = lines.len();
    }

    fn line(&self, at: Instant, who: &str, style: Style, text: &str) {
        let seconds = at.saturating_duration_since(self.start).as_secs_f64();
        println!("{QUIET}{seconds:>+7.2} s{QUIET:#}  {who:<7}  {style}{text}{style:#}");
    }

    fn wait_for_knockd(&mut self, wanted: &str) -> Result<()> {
        let knockd = self.knockd.as_mut().context("knockd was not started")?;
        let found = knockd.wait_for_line(wanted, PATIENCE);
        self.catch_up();
        found.map(drop).context("knockd did not do what it should")
    }

    fn knock(&mut self, client: &Person<'_>, knock: &str, server: &Host) -> Result<()> {
        let address = server.ipv4.to_string();
        self.typed(client.name, &format!("knock {address} {}", SEQUENCE.join(" ")));
        client.host.run(&[&[knock, &address], &SEQUENCE[..]].concat()).map(drop)
    }

    /// Tries to connect to port 22 until the result is as expected; a slow machine's firewall may need some seconds.
    fn check_port(&mut self, person: &Person<'_>, server: &Host, promised: Port) -> Result<()> {
        self.typed(person.name, &format!("nc -z -w 1 {} 22", server.ipv4));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = if person.host.can_connect(server.ipv4, 22)? { Port::Open } else { Port::Closed };
            let text = match found {
                Port::Open => "The server answers: port 22 is OPEN, as it should be.",
                Port::Closed => "No connection: port 22 is CLOSED, as it should be.",
            };
            if found == promised {
                self.catch_up();
                self.line(Instant::now(), "", GOOD, text);
                return Ok(());
            }
            if Instant::now() > deadline {
                self.catch_up();
                match promised {
                    Port::Open => bail!("port 22 should be open but does not answer"),
                    Port::Closed => bail!("port 22 should be closed but answers"),
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop_knockd(&mut self) -> Result<()> {
        self.typed("server#", "kill $(pidof knockd)");
        let knockd = self.knockd.as_mut().context("knockd was not started")?;
        knockd.signal(Signal::SIGTERM)?;
        let ended = knockd.wait(PATIENCE);
        self.catch_up();
        self.knockd = None;
        ended.map(drop)
    }
}
