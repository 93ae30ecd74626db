//! Host names for log lines, looked up without delaying anybody.

use std::net::IpAddr;
use std::thread;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};

/// How many names are looked up at the same time: a resolver that does not answer occupies a worker for seconds.
const WORKERS: usize = 8;

/// How many lookups wait for a worker; more are skipped.
const QUEUE: usize = 256;

/// The workers. They live as long as the process.
#[derive(Debug)]
pub(crate) struct HostNames {
    requests: Sender<(IpAddr, Sender<String>)>,
}

impl HostNames {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (requests, work) = crossbeam_channel::bounded::<(IpAddr, Sender<String>)>(QUEUE);
        for _ in 0..WORKERS {
            let work = work.clone();
            thread::Builder::new()
                .name("names".to_owned())
                .spawn(move || work.iter().for_each(|(address, answer)| look_up(address, &answer)))
                .context("cannot start the name lookup thread")?;
        }
        Ok(Self { requests })
    }

    /// Requests the name of an address; if there is none, the returned channel disconnects.
    pub(crate) fn ask(&self, address: IpAddr) -> Receiver<String> {
        let (answer, name) = crossbeam_channel::bounded(1);
        // If every worker is busy and the queue is full, the line goes out without a name.
        let _ = self.requests.try_send((address, answer));
        name
    }
}

fn look_up(address: IpAddr, answer: &Sender<String>) {
    let Ok(name) = dns_lookup::lookup_addr(&address) else { return };
    // The owner of the address chooses the name: it must not be able to forge a log line.
    let harmless = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if harmless && name.parse::<IpAddr>().is_err() {
        let _ = answer.send(name);
    }
}
