//! Prints what a knock daemon would do: the decoder of knockd-capture, and the gate of knockd-core with its leases.
//!
//! ```text
//! cargo build -p knockd-capture --example sniffer
//! sudo target/debug/examples/sniffer eth0 /etc/knockd.conf
//! ```
//!
//! It runs no command and stores nothing, and takes every command to have succeeded. knockd itself decodes packets in a
//! process without privileges; this example keeps its own.

use std::collections::VecDeque;
use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs, thread};

use knockd_capture::{Buffer, Capture, CaptureError, Interface, PacketSocket, Program, Received, interfaces};
use knockd_core::{
    Config, Effect, Gate, Now, OneTimeFiles, Outcome, Packet, Seed, Timestamp, UnixTime, Wanted,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [name, file] = &arguments[..] else { return Err("usage: sniffer INTERFACE CONFIGURATION".into()) };
    let config = Config::parse(&fs::read(file)?)?.config;
    let interface = interfaces().into_iter().find(|interface| interface.name == *name);
    let interface = interface.ok_or_else(|| format!("{name}: no such interface"))?;

    let mut gate = Gate::new(config, OneTimeFiles::new(), random_seed());
    gate.set_addresses(interface.addresses.iter().copied());
    let socket = Arc::new(PacketSocket::open(&interface, &filter(gate.wanted(), &interface), Buffer::Ring)?);
    let capture = Capture::new(Arc::clone(&socket))?;
    let (sender, packets) = sync_channel(1024);
    thread::spawn(move || read(capture, &sender));
    println!("listening on {name}");

    let clock = Clock::start();
    loop {
        let packet = next_packet(&packets, &gate, &clock)?;
        let now = clock.now();
        // Outcomes borrow the gate, and carrying one out may lead to more.
        let mut outcomes: VecDeque<_> = match packet {
            Some(packet) => gate.handle_packet(&packet, now).collect(),
            None => gate.handle_timeout(now).collect(),
        };
        while let Some(outcome) = outcomes.pop_front() {
            match outcome {
                Outcome::Effect(Effect::Run(run)) => {
                    println!("{}: run: {}", run.source, run.command);
                    outcomes.extend(gate.handle_exit(run.id, true, now));
                }
                Outcome::Wanted(wanted) => socket.set_filter(&filter(&wanted, &interface))?,
                Outcome::Attempt(event) => {
                    let door = gate.config().door(event.door).map(|door| &door.name);
                    println!("{}: {}: {:?}", event.source, door.ok_or("no such door")?, event.kind);
                }
                Outcome::Opening { door, source, result } => println!("{source}: {door}: {result:?}"),
                Outcome::Scanner(source) => println!("{source}: scanner"),
                // A daemon makes this durable before it goes on, and restores it after a crash.
                Outcome::Effect(Effect::Store(record)) => println!("store lease {:?}", record.id),
                Outcome::Effect(other) => println!("{other:?}"),
                Outcome::UsedUp(_) => {}
            }
        }
    }
}

/// Returns the next packet; nothing when the gate has something to do before.
fn next_packet(
    packets: &Receiver<Packet>,
    gate: &Gate,
    clock: &Clock,
) -> Result<Option<Packet>, RecvTimeoutError> {
    let Some(due) = gate.poll_timeout() else {
        return packets.recv().map(Some).map_err(|_| RecvTimeoutError::Disconnected);
    };
    match packets.recv_timeout(due.since(clock.now().monotonic)) {
        Ok(packet) => Ok(Some(packet)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads packets until nobody takes them, or reading fails.
fn read(mut capture: Capture<Arc<PacketSocket>>, packets: &SyncSender<Packet>) {
    loop {
        match capture.receive() {
            Ok(Received::Packet(packet)) => {
                if packets.send(packet).is_err() {
                    return;
                }
            }
            Ok(Received::Dropped(count)) => eprintln!("dropped {count} packets"),
            // An interface that is down comes up again; one that was deleted stays silent.
            Ok(Received::Undecodable(_) | Received::Drained) | Err(CaptureError::LinkDown) => {}
            Err(error) => {
                eprintln!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default());
                return;
            }
        }
    }
}

fn filter(wanted: &Wanted, interface: &Interface) -> Program {
    Program::guarded(&wanted.interests, interface, wanted.strays.as_ref(), false)
}

/// Returns a seed that strangers cannot guess.
fn random_seed() -> Seed {
    let random = || RandomState::new().build_hasher().finish();
    Seed::new(random(), random())
}

/// The present. Unlike knockd's, this clock stands still while the machine sleeps.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn now(&self) -> Now {
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: Timestamp::new(self.0.elapsed()), calendar: UnixTime::new(calendar) }
    }
}
