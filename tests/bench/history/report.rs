//! The table: medians at each length, and how much more the longest costs.

use anyhow::{Context as _, Result};
use sealift_e2e::real::Database;
use serde_json::json;

/// At most so many times the shortest history's cost.
const GOAL: f64 = 1.3;

/// What was measured of one operation.
pub struct Measured {
    pub operation: &'static str,
    /// Items in each answer.
    pub items: usize,
    /// Seconds of each call, by length of history.
    pub seconds: Vec<Vec<f64>>,
}

impl Measured {
    fn medians(&self) -> Vec<f64> {
        let middle = |seconds: &Vec<f64>| {
            let mut sorted = seconds.clone();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied().unwrap_or_default()
        };
        self.seconds.iter().map(middle).collect()
    }

    /// The worst of the longer ones beside the shortest.
    fn ratio(&self) -> f64 {
        let medians = self.medians();
        let (first, rest) = medians.split_first().unwrap_or((&0.0, &[]));
        rest.iter().copied().fold(*first, f64::max) / first
    }
}

/// One store.
pub struct Report {
    store: &'static str,
    rows: Vec<u64>,
    repeat: usize,
    measured: Vec<Measured>,
}

impl Report {
    /// Of a store at these lengths, of so many calls each.
    pub fn new(store: Database, rows: &[u64], repeat: usize) -> Self {
        Self {
            store: match store {
                Database::Sqlite => "SQLite",
                Database::Postgres => "PostgreSQL",
            },
            rows: rows.to_vec(),
            repeat,
            measured: Vec::new(),
        }
    }

    /// Adds a line.
    pub fn add(&mut self, measured: Measured) {
        self.measured.push(measured);
    }

    /// Prints the table.
    pub fn print(&self) {
        println!(
            "\n{}: milliseconds, medians of {} calls each, by rows of history\n",
            self.store, self.repeat
        );
        let lengths = row(&self.rows, |rows| format!("{rows:>11}"));
        println!(
            "{:<32}{:>6}{lengths}{:>8}  goal <= {GOAL}",
            "operation", "items", "ratio"
        );
        let mut missed = 0;
        for one in &self.measured {
            let medians = one.medians();
            let cells = row(&medians, |seconds| format!("{:>11.3}", seconds * 1_000.0));
            let met = one.ratio() <= GOAL;
            missed += usize::from(!met);
            println!(
                "{:<32}{:>6}{cells}{:>8.2}  {}",
                one.operation,
                one.items,
                one.ratio(),
                if met { "met" } else { "missed" }
            );
        }
        println!(
            "{}: {} of {} met",
            self.store,
            self.measured.len() - missed,
            self.measured.len()
        );
    }
}

/// One cell after the other.
fn row<T>(values: &[T], cell: impl Fn(&T) -> String) -> String {
    let cells: Vec<String> = values.iter().map(cell).collect();
    cells.concat()
}

/// Writes all reports as JSON.
pub fn write(reports: &[Report], file: &str) -> Result<()> {
    let all: Vec<_> = reports
        .iter()
        .map(|report| {
            let operations: Vec<_> = report
                .measured
                .iter()
                .map(|one| {
                    json!({
                        "operation": one.operation,
                        "items": one.items,
                        "medians_s": one.medians(),
                        "seconds": one.seconds,
                        "ratio": one.ratio(),
                    })
                })
                .collect();
            json!({
                "store": report.store,
                "rows": report.rows,
                "goal": GOAL,
                "operations": operations,
            })
        })
        .collect();
    std::fs::write(file, serde_json::to_vec_pretty(&all)?).with_context(|| file.to_owned())
}
