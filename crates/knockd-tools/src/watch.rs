//! `knockd watch`: the status of the running daemon, live in the terminal.

mod draw;
mod view;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::draw::Palette;
use self::view::{Fresh, News, Step, View};
use knockd_cli::Exit;
use knockd_cli::control::{Reply, Request, Status};
use knockd_cli::system::text::harmless;
use knockd_cli::tools::client::Connection;
use knockd_cli::tools::status::StatusText;

/// How often to ask the daemon.
const INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait for a key or a signal.
const TICK: Duration = Duration::from_millis(200);

/// Shows the status of the daemon at this socket until the user quits.
///
/// # Errors
/// When no daemon is reachable at first, or there is no terminal.
pub fn run(socket: &Path) -> anyhow::Result<Exit> {
    // Without a daemon, fail at once and say why.
    let first = ask(&mut Connection::open(socket)?)?;
    if !io::stdout().is_terminal() {
        bail!("not a terminal; use `knockd status` instead");
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("cannot catch signals")?;
    }
    let (tell, news) = bounded(1);
    let (ask, requests) = bounded(1);
    let (path, answer) = (socket.to_owned(), tell.clone());
    knockd_cli::system::spawn("watch", move || keep_asking(&path, &tell))?;
    let path = socket.to_owned();
    knockd_cli::system::spawn("requests", move || keep_requesting(&path, &requests, &answer))?;
    let term = std::env::var("TERM").unwrap_or_default();
    if term.is_empty() || term == "dumb" {
        print(&news, first.status, &ended);
        return Ok(Exit::Succeeded);
    }
    let mut view = View::new(*first);
    show_cursor_after_a_panic();
    // From here on, a panic restores the rest of the terminal as well.
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let result = show(&mut terminal, &mut view, (&ask, &news), &ended);
    ratatui::restore();
    result.context("cannot use the terminal")?;
    Ok(Exit::Succeeded)
}

/// ratatui restores the cursor in a destructor, and after a panic none runs.
fn show_cursor_after_a_panic() {
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = ratatui::crossterm::execute!(io::stdout(), Show);
        earlier(panic);
    }));
}

fn show(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    (ask, news): (&Sender<Request>, &Receiver<News>),
    ended: &AtomicBool,
) -> io::Result<()> {
    let palette = Palette::of_the_environment();
    terminal.draw(|frame| draw::draw(frame, view, palette))?;
    while !ended.load(Ordering::Relaxed) {
        let mut is_new = false;
        for news in news.try_iter() {
            view.take(news);
            is_new = true;
        }
        // A signal interrupts the wait, or is seen after it.
        match event::poll(TICK) {
            Ok(true) => match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    match view.handle_key(key) {
                        Step::Stay => {}
                        Step::Quit => return Ok(()),
                        Step::Ask(request) => {
                            if ask.try_send(request).is_err() {
                                view.take(News::Answer(Err("still waiting for the daemon".to_owned())));
                            }
                        }
                    }
                    is_new = true;
                }
                Event::Resize(..) => is_new = true,
                _ => {}
            },
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if is_new {
            terminal.draw(|frame| draw::draw(frame, view, palette))?;
        }
    }
    Ok(())
}

/// The output for a terminal that can only print lines: the status whenever anything except its times changes.
fn print(news: &Receiver<News>, first: Status, ended: &AtomicBool) {
    let mut out = anstream::stdout();
    let mut shown = Err(String::new());
    let mut latest = Ok(first);
    while !ended.load(Ordering::Relaxed) {
        let is_same = match (&latest, &shown) {
            (Ok(latest), Ok(shown)) => without_times(latest) == without_times(shown),
            (latest, shown) => latest == shown,
        };
        if !is_same {
            let written = match &latest {
                Ok(status) => writeln!(out, "{}", StatusText(status)),
                Err(reason) => writeln!(out, "{}", harmless(reason)),
            };
            if written.is_err() {
                break;
            }
            shown.clone_from(&latest);
        }
        if let Ok(News::State(state)) = news.recv_timeout(TICK) {
            latest = state.map(|fresh| fresh.status);
        }
    }
}

fn without_times(status: &Status) -> Status {
    let mut status = status.clone();
    status.uptime = 0;
    status.attempts.listed.iter_mut().for_each(|attempt| attempt.age = 0);
    status.leases.listed.iter_mut().for_each(|lease| lease.left = None);
    status
}

/// Asks the daemon for its state repeatedly, and reconnects when it is gone.
fn keep_asking(socket: &Path, tell: &Sender<News>) {
    let mut connection = None;
    loop {
        std::thread::sleep(INTERVAL);
        let state = (|| {
            let mut open = connection.take().map_or_else(|| Connection::open(socket), Ok)?;
            let state = ask(&mut open)?;
            connection = Some(open);
            anyhow::Ok(state)
        })();
        if tell.send(News::State(state.map_err(|error| format!("{error:#}")))).is_err() {
            return;
        }
    }
}

/// Makes the requests, one after the other: the reply to one may take as long as a stop command.
fn keep_requesting(socket: &Path, requests: &Receiver<Request>, tell: &Sender<News>) {
    for request in requests {
        let answer = Connection::open(socket).and_then(|mut connection| obey(&mut connection, &request));
        if tell.send(News::Answer(answer.map_err(|error| format!("{error:#}")))).is_err() {
            return;
        }
    }
}

fn obey(connection: &mut Connection, request: &Request) -> anyhow::Result<String> {
    match connection.ask(request)?.1 {
        Reply::Done { text } => Ok(text),
        other => Err(unexpected(other)),
    }
}

fn ask(connection: &mut Connection) -> anyhow::Result<Box<Fresh>> {
    let status = match connection.ask(&Request::Status {})?.1 {
        Reply::Status(status) => *status,
        other => return Err(unexpected(other)),
    };
    let scanners = match connection.ask(&Request::Scanners {})?.1 {
        Reply::Scanners(scanners) => scanners,
        other => return Err(unexpected(other)),
    };
    let events = match connection.ask(&Request::Events {})?.1 {
        Reply::Events { events } => events,
        other => return Err(unexpected(other)),
    };
    Ok(Box::new(Fresh { status, scanners, events }))
}

fn unexpected(reply: Reply) -> anyhow::Error {
    match reply {
        Reply::Refused { reason } => anyhow!(reason),
        _ => anyhow!("unexpected reply from knockd"),
    }
}
