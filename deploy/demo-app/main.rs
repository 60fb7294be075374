//! The demo service: small enough to read in a minute, with every behaviour that a deployment can meet.
//!
//! Plain `std`, one file, built by `build.sh` into a static binary for a `FROM scratch` image. Environment:
//!
//! | Variable | Meaning | Default |
//! |---|---|---|
//! | `PORT` | port of the HTTP server | 8080 |
//! | `VERSION` | what `/` says | `unknown` |
//! | `HEALTH` | `ok`, `fail`, `flap` (5 s well, 5 s ill), `after:N` (well N seconds after the start) | `ok` |
//! | `FLOOD` | lines that are printed as fast as can be, beside serving | 0 |
//! | `DEMO_COMMAND` | the command when none is given: `serve`, `exit N`, `sleep` | `serve` |
//!
//! `healthcheck` asks the server in the same container and exits with 0 or 1: a scratch image has no curl. For hooks there are also
//! `get HOST:PORT`, which asks another container, `environment`, which prints what begins with SEALIFT_, `reach`, which does that and
//! asks every container of SEALIFT_TO, and `flood MIB`, which says much.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Connections served at once; more than that are closed without an answer.
const MAX_CONNECTIONS: usize = 64;
const IO_TIMEOUT: Duration = Duration::from_secs(5);
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(1);

// The C library is linked anyway and pid 1 has no default action for SIGTERM, so these two are declared by hand.
unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn _exit(status: i32) -> !;
}

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

extern "C" fn leave(_: i32) {
    // SAFETY: `_exit` is async-signal-safe and does not return.
    unsafe { _exit(0) }
}

fn main() -> ExitCode {
    // SAFETY: `leave` has the type of a signal handler and calls only what is async-signal-safe.
    unsafe {
        signal(SIGTERM, leave);
        signal(SIGINT, leave);
    }
    let mut words: Vec<String> = env::args().skip(1).collect();
    if words.is_empty() {
        words = setting("DEMO_COMMAND", "serve").split_whitespace().map(str::to_owned).collect();
    }
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve"] => serve(),
        ["healthcheck"] => healthcheck(),
        ["exit", code] => exit(code),
        ["get", address] => verdict(get(address)),
        ["environment"] => environment(),
        ["reach"] => reach(),
        ["flood", mib] => flood(mib),
        ["sleep"] => loop {
            thread::park();
        },
        other => usage(other),
    }
}

fn usage(words: &[&str]) -> ExitCode {
    eprintln!("demo-app: unknown command {words:?}; known are: serve, healthcheck, exit N, sleep, get HOST:PORT, environment, reach, flood MIB");
    ExitCode::from(2)
}

fn exit(code: &str) -> ExitCode {
    match code.parse::<u8>() {
        Ok(code) => {
            println!("demo-app {}: exiting with {code} as told", setting("VERSION", "unknown"));
            ExitCode::from(code)
        }
        Err(_) => usage(&["exit", code]),
    }
}

fn setting(name: &str, default: &str) -> String {
    env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

fn port() -> Result<u16, String> {
    let text = setting("PORT", "8080");
    text.parse().map_err(|_| format!("PORT is not a port number: {text:?}"))
}

#[derive(Clone, Copy)]
enum Health {
    Ok,
    Fail,
    Flap,
    After(Duration),
}

impl Health {
    fn parse(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("after:").map(str::parse)) {
            ("ok", _) => Ok(Self::Ok),
            ("fail", _) => Ok(Self::Fail),
            ("flap", _) => Ok(Self::Flap),
            (_, Some(Ok(seconds))) => Ok(Self::After(Duration::from_secs(seconds))),
            _ => Err(format!("HEALTH is none of ok, fail, flap, after:N: {text:?}")),
        }
    }

    fn is_well(self, age: Duration) -> bool {
        match self {
            Self::Ok => true,
            Self::Fail => false,
            Self::Flap => (age.as_secs() / 5) % 2 == 0,
            Self::After(delay) => age >= delay,
        }
    }
}

/// What every connection needs to answer.
struct Service {
    version: String,
    hostname: String,
    health: Health,
    started: Instant,
    connections: AtomicUsize,
}

fn serve() -> ExitCode {
    match start() {
        Ok((listener, service)) => {
            thread::spawn(flood_first);
            accept_for_ever(&listener, &Arc::new(service))
        }
        Err(reason) => {
            eprintln!("demo-app: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(TcpListener, Service), String> {
    let health = Health::parse(&setting("HEALTH", "ok"))?;
    let port = port()?;
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    let service = Service {
        version: setting("VERSION", "unknown"),
        hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        health,
        started: Instant::now(),
        connections: AtomicUsize::new(0),
    };
    println!("demo-app {} on {}: listening on port {port}", service.version, service.hostname);
    Ok((listener, service))
}

fn flood_first() {
    let lines: u64 = setting("FLOOD", "0").parse().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for line in 0..lines {
        // Without a reader there is nothing to flood.
        if writeln!(out, "{line:>12} {}", "flood ".repeat(16)).is_err() {
            return;
        }
    }
}

fn accept_for_ever(listener: &TcpListener, service: &Arc<Service>) -> ! {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or the peer is gone already: give the others time to finish.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        if service.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            service.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let service = Arc::clone(service);
        thread::spawn(move || {
            // A client that goes away in the middle is its own problem.
            let _ = answer(&stream, &service);
            service.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn answer(mut stream: &TcpStream, service: &Service) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    let mut line = String::new();
    // One request line is all we read, and never more than 1 KiB of it.
    BufReader::new(stream.take(1024)).read_line(&mut line)?;
    let (status, body) = match line.split(' ').nth(1) {
        Some("/") => ("200 OK", format!("demo-app {} on {}\n", service.version, service.hostname)),
        Some("/healthz") if service.health.is_well(service.started.elapsed()) => ("200 OK", "ok\n".to_owned()),
        Some("/healthz") => ("503 Service Unavailable", "not healthy\n".to_owned()),
        Some(_) => ("404 Not Found", "try / or /healthz\n".to_owned()),
        None => ("400 Bad Request", String::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn healthcheck() -> ExitCode {
    verdict(port().and_then(|port| ask(SocketAddr::from(([127, 0, 0, 1], port)))))
}

fn get(address: &str) -> Result<String, String> {
    let mut found = address.to_socket_addrs().map_err(|error| format!("{address}: {error}"))?;
    ask(found.next().ok_or_else(|| format!("{address} has no address"))?)
}

fn environment() -> ExitCode {
    for (name, value) in env::vars().filter(|(name, _)| name.starts_with("SEALIFT_")) {
        println!("{name}={value}");
    }
    ExitCode::SUCCESS
}

fn reach() -> ExitCode {
    environment();
    let to = setting("SEALIFT_TO", "");
    let answers: Result<Vec<String>, String> = to
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .map(|(_, container)| get(&format!("{container}:{}", port()?)))
        .collect();
    verdict(answers.map(|answers| answers.last().cloned().unwrap_or_else(|| "HTTP/1.1 200 nobody".to_owned())))
}

/// Short lines are the hardest to keep up with.
fn flood(mib: &str) -> ExitCode {
    let Ok(mib) = mib.parse::<u64>() else {
        return usage(&["flood", mib]);
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for number in 0..mib * 1024 * 1024 / 16 {
        // Nobody listens any more: nothing is left to be said.
        if writeln!(out, "line {number:010}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn verdict(answer: Result<String, String>) -> ExitCode {
    match answer {
        Ok(reply) if reply.starts_with("HTTP/1.1 200") => ExitCode::SUCCESS,
        Ok(reply) => {
            println!("{}", reply.lines().next().unwrap_or("empty answer"));
            ExitCode::FAILURE
        }
        Err(reason) => {
            println!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn ask(address: SocketAddr) -> Result<String, String> {
    let fault = |error: std::io::Error| format!("no answer from {address}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT).map_err(fault)?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT)).map_err(fault)?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").map_err(fault)?;
    let mut reply = String::new();
    (&stream).take(4096).read_to_string(&mut reply).map_err(fault)?;
    Ok(reply)
}
