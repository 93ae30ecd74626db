//! `knock proxy`: the connection of ssh, with a knock before it if it needs one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use knock_client::args::{Args, Proxy, Report as Format};
use knock_client::hosts::{Hosts, HostsError};
use knock_client::profile::Profile;
use knock_client::value::Families;
use knock_client::{Route, Target, Verdict, Verification, Verify, reason};

use crate::exit::Exit;
use crate::lock::Lock;
use crate::plan::{Plan, PlanError};
use crate::report::Report;
use crate::run::{How, send, settle};

/// Connects, with a knock if the service does not answer, and passes on what comes until both sides have ended.
pub(crate) fn proxy(args: &Proxy) -> Exit {
    let found = find(args);
    let name = found.as_ref().ok().and_then(Option::as_ref).map_or(&args.host, |(name, _)| name).clone();
    let mut report = Report::new(&name, Format::Text, false).without_success();
    let (host, families) = match &found {
        Ok(Some((name, profile))) if *name == args.host => (profile.host.as_str(), profile.family),
        Ok(Some((_, profile))) => (args.host.as_str(), profile.family),
        Ok(None) | Err(_) => (args.host.as_str(), None),
    };
    let connected = match &found {
        Ok(Some((name, profile))) => open(args, name, profile, host, &mut report).unwrap_or_else(|error| {
            report.error(&error.to_string());
            Err(Exit::from(&error))
        }),
        Ok(None) => {
            report.error(&format!("no profile for {}; connecting without a knock", args.host));
            Err(Exit::Failed)
        }
        Err(error) => {
            report.error(&error.to_string());
            report.error("connecting without a knock");
            Err(Exit::Failed)
        }
    };
    report.clear();
    // Nothing about the knock may be what keeps ssh from trying.
    let route = found.as_ref().ok().and_then(Option::as_ref).map(|(_, profile)| profile);
    let route = route.and_then(|profile| Route::new(profile.interface.as_deref(), profile.source).ok());
    let connected = connected.or_else(|exit| {
        connect_anyway(host, families, route.unwrap_or_default(), args.port.port).map_err(|error| {
            report.error(&error);
            exit
        })
    });
    match connected.map(|connection| pass_on(&connection)) {
        Ok(Ok(())) => Exit::Done,
        Ok(Err(error)) => {
            report.error(&format!("connection to {host} is broken: {}", reason(&error)));
            Exit::Failed
        }
        Err(exit) => exit,
    }
}

/// Finds the profile of a host: the one that is named; or one with this name or host, best with this service.
fn find(args: &Proxy) -> Result<Option<(String, Profile)>, HostsError> {
    let hosts = Hosts::read()?;
    if let Some(name) = &args.profile {
        return hosts.profile(name).map(|profile| Some((name.clone(), profile)));
    }
    // An invalid profile of another host is nothing to stop for.
    let matches = hosts.names().filter_map(|name| Some((name.to_owned(), hosts.profile(name).ok()?)));
    let matches = matches
        .filter(|(name, profile)| *name == args.host || profile.host.eq_ignore_ascii_case(&args.host))
        .collect::<Vec<_>>();
    if matches.is_empty() && hosts.names().any(|name| name == args.host) {
        return hosts.profile(&args.host).map(|profile| Some((args.host.clone(), profile)));
    }
    let rank = |(name, profile): &(String, Profile)| {
        let is_for_port = profile.verify.as_ref().is_some_and(|service| service.port == args.port.port);
        (is_for_port, *name == args.host)
    };
    // Of equals, the first in the file.
    Ok(matches.into_iter().rev().max_by_key(rank))
}

/// Connects to the service, and knocks if it does not answer. The inner error is the status to end with if it stays
/// closed; then it is tried once more, with the patience of the system.
fn open(
    args: &Proxy,
    name: &str,
    profile: &Profile,
    host: &str,
    report: &mut Report,
) -> Result<Result<TcpStream, Exit>, PlanError> {
    let verify = Verify {
        service: args.port.clone(),
        retries: profile.retries.unwrap_or(Verify::RETRIES),
        timeout: profile.timeout.unwrap_or(Verify::TIMEOUT),
    };
    // A host that does not resolve is reported at last.
    let route = Route::new(profile.interface.as_deref(), profile.source);
    let Ok(targets) = route.and_then(|route| Target::choose(host, profile.family, route)) else {
        return Ok(Err(Exit::Failed));
    };
    let mut verification = Verification::new(&verify, &targets);
    report.progress("connecting");
    if let Some(connection) = verification.look_and_wait().and_then(|outcome| outcome.connection) {
        return Ok(Ok(connection));
    }
    let lock = Lock::take(name, || report.progress("waiting for another knock"));
    if lock.has_waited
        && let Some(connection) = verification.look_and_wait().and_then(|outcome| outcome.connection)
    {
        return Ok(Ok(connection));
    }
    // With the lock, so that no other knock uses the same one-time line.
    let mut plan = Plan::of_profile(name, profile, &Args::without_options(name), Some(lock))?;
    plan.knock.verify = Some(verify.clone());
    let mut prepared = plan.knock.prepare()?;
    let how = How { is_verbose: false, is_strict: false };
    let knock = |number| send(&mut prepared, how, report, number);
    let Some(outcome) = verification.knock_until_open(knock) else { return Ok(Err(Exit::Failed)) };
    let exit = Exit::from(&outcome.verdict);
    if matches!(outcome.verdict, Verdict::StillClosed(_) | Verdict::Unreachable(_)) {
        report.verdict(&verify.service, &outcome);
    }
    if let Some(line) = &plan.line {
        settle(line, &outcome, report);
    }
    Ok(outcome.connection.ok_or(exit))
}

/// Tries every address, each for as long as the system does.
fn connect_anyway(
    host: &str,
    families: Option<Families>,
    route: Route,
    port: u16,
) -> Result<TcpStream, String> {
    let targets = Target::resolve_all(host, Families::only(families)).map_err(|error| error.to_string())?;
    let mut errors = Vec::new();
    for target in targets {
        match target.via(route).connect(port) {
            Ok(connection) => return Ok(connection),
            Err(error) => errors.push(format!("cannot connect to {target}: {}", reason(&error))),
        }
    }
    Err(errors.join("; "))
}

/// Passes on stdin to the other side and what comes from there to stdout, until the other side has ended.
fn pass_on(connection: &TcpStream) -> io::Result<()> {
    // Keys that a person types are not to wait for each other.
    connection.set_nodelay(true)?;
    let mut there = connection.try_clone()?;
    // It ends with the process, also while stdin is still open.
    thread::Builder::new().spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut there);
        let _ = there.shutdown(Shutdown::Write);
    })?;
    let mut here = connection;
    match copy(&mut here, &mut io::stdout().lock()) {
        // ssh has gone first.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Copies what comes as soon as it comes.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(buffer.get(..length).unwrap_or_default())?;
        to.flush()?;
    }
}
