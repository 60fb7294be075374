//! The matrix: fault × host × result.

use std::{fmt, time::Duration};

use crate::table::{FAULTS, Host, Row};

/// What came of a row.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Everything that must hold held.
    Held(String),
    /// Invariants that did not.
    Violated(Vec<String>),
    /// The case did not go as it must.
    Failed(String),
    /// Left out of this run, and why.
    LeftOut(&'static str),
    /// Its tests are there, and another stage runs them: this one.
    Elsewhere(&'static str),
}

impl Outcome {
    /// Whether this run did something for it.
    pub const fn ran(&self) -> bool {
        match self {
            Self::Held(_) | Self::Violated(_) | Self::Failed(_) => true,
            Self::LeftOut(_) | Self::Elsewhere(_) => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(note) if note.is_empty() => write!(to, "held"),
            Self::Held(note) => write!(to, "held ({note})"),
            Self::Violated(found) => write!(to, "VIOLATED\n  {}", found.join("\n  ")),
            Self::Failed(why) => write!(to, "FAILED\n  {why}"),
            Self::LeftOut(why) => write!(to, "not run ({why})"),
            Self::Elsewhere(stage) => write!(to, "elsewhere ({stage})"),
        }
    }
}

/// A row with what came of it.
pub struct Result<'a> {
    /// The row.
    pub row: &'a Row,
    /// The kind of host.
    pub host: Host,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// Prints the matrix; whether something ran, and all that ran held.
pub fn print(results: &[Result<'_>], is_chosen: impl Fn(&str, Host) -> bool) -> bool {
    let (mut held, mut failed, mut violations) = (0, 0, 0);
    let (mut left_out, mut elsewhere, mut uncovered) = (0, 0, 0);
    println!(
        "\n{:<5}{:<14}{:<15}{:>7}  injected by",
        "fault", "host", "result", "time"
    );
    for fault in FAULTS {
        let hosts = fault.hosts.iter().filter(|host| is_chosen(fault.id, **host));
        let hosts: Vec<_> = hosts.collect();
        if !hosts.is_empty() {
            println!("{:<5}{}", fault.id, fault.title);
        }
        for host in hosts {
            let rows = results
                .iter()
                .filter(|result| result.row.fault == fault.id && result.host == *host);
            let mut any = false;
            for Result {
                row, outcome, took, ..
            } in rows
            {
                any = true;
                let (word, more) = match outcome {
                    Outcome::Held(note) => {
                        held += 1;
                        ("held", note.clone())
                    }
                    Outcome::Violated(found) => {
                        failed += 1;
                        violations += found.len();
                        ("VIOLATED", String::new())
                    }
                    Outcome::Failed(_) => {
                        failed += 1;
                        ("FAILED", String::new())
                    }
                    Outcome::LeftOut(why) => {
                        left_out += 1;
                        ("not run", (*why).to_owned())
                    }
                    Outcome::Elsewhere(stage) => {
                        elsewhere += 1;
                        ("elsewhere", (*stage).to_owned())
                    }
                };
                let more = if more.is_empty() {
                    more
                } else {
                    format!(" ({more})")
                };
                let seconds = took.as_secs_f64();
                println!(
                    "     {:<14}{word:<15}{seconds:>6.1}s  {}{more}",
                    host.as_str(),
                    row.how
                );
            }
            if !any {
                uncovered += 1;
                println!("     {:<14}{:<15}", host.as_str(), "not covered");
            }
        }
    }
    for Result {
        row, host, outcome, ..
    } in results
    {
        let what = format!("{} {}: {}", row.fault, host.as_str(), row.how);
        match outcome {
            Outcome::Violated(found) => println!("\n{what}\n  {}", found.join("\n  ")),
            Outcome::Failed(why) => println!("\n{what}\n  {why}"),
            Outcome::Held(_) | Outcome::LeftOut(_) | Outcome::Elsewhere(_) => {}
        }
    }
    println!(
        "\n{held} rows held, {failed} failed, {violations} violations; {elsewhere} proven elsewhere, {left_out} not run here, {uncovered} not covered"
    );
    if held + failed == 0 {
        println!("no row ran at all: that is a failure, not a success");
    }
    failed == 0 && held > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::ROWS;

    fn holds(outcomes: &[Outcome]) -> bool {
        let row = &ROWS[0];
        let results: Vec<_> = outcomes
            .iter()
            .map(|outcome| Result {
                row,
                host: row.hosts[0],
                outcome: outcome.clone(),
                took: Duration::ZERO,
            })
            .collect();
        print(&results, |_, _| true)
    }

    #[test]
    fn a_run_in_which_nothing_ran_is_no_success() {
        let (held, failed) = (Outcome::Held(String::new()), Outcome::Failed(String::new()));
        assert!(holds(&[held.clone(), Outcome::LeftOut("needs root")]));
        for outcomes in [
            vec![],
            vec![Outcome::LeftOut("needs root"), Outcome::Elsewhere("stage engine")],
            vec![held, failed],
        ] {
            assert!(!holds(&outcomes), "{outcomes:?}");
        }
    }
}
