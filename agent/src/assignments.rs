//! Assignments: a full set, then increments. What they ask for is worked out here; doing it is the workshop's.

use sealift_common::{bounds::ENVELOPE_BYTES, id::TaskId};
use sealift_proto::{
    agent::v1::Assignments,
    convert::{Malformed, parse},
};

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Take up this order, or go on with it.
    Offer {
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: u32,
        /// The envelope's exact bytes.
        order: Vec<u8>,
    },
    /// Stop and restore.
    Stop {
        /// The task.
        task: TaskId,
    },
    /// Only these tasks still matter.
    Keep {
        /// The tasks.
        tasks: Vec<TaskId>,
    },
    /// These tasks need nothing more.
    Drop {
        /// The tasks.
        tasks: Vec<TaskId>,
    },
}

/// What a message means for an agent that has seen those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Do this, in order.
    Acts(Vec<Act>),
    /// A message is missing: ask for the full set.
    Gap,
    /// The full set was asked for and is still to come.
    Waiting,
}

/// What the agent knows of its assignments in this session.
#[derive(Debug, Default)]
pub struct Known {
    version: Option<u64>,
    resync_asked: bool,
}

impl Known {
    /// Takes a message.
    pub fn take(&mut self, message: Assignments) -> Result<Meaning, Malformed> {
        let is_full = message.base == 0;
        if message.version <= message.base {
            return Err(Malformed::new("assignments.version", "is not above its base"));
        }
        if !is_full && self.version != Some(message.base) {
            self.version = None;
            if std::mem::replace(&mut self.resync_asked, true) {
                return Ok(Meaning::Waiting);
            }
            return Ok(Meaning::Gap);
        }
        let mut acts = Vec::with_capacity(message.upserts.len() + 1);
        let mut tasks = Vec::new();
        for upsert in message.upserts {
            let task = parse("assignments.upserts[].task_id", &upsert.task_id)?;
            if upsert.order.len() > ENVELOPE_BYTES {
                return Err(Malformed::new("assignments.upserts[].order", "is too large"));
            }
            tasks.push(task);
            // A stop comes with the order: a task that was stopped before it arrived is taken up, touches nothing and says so,
            // with a packet (R3).
            acts.push(Act::Offer {
                task,
                attempt: upsert.attempt,
                order: upsert.order,
            });
            if upsert.stop {
                acts.push(Act::Stop { task });
            }
        }
        let removed = message
            .removals
            .iter()
            .map(|removal| parse("assignments.removals[]", removal))
            .collect::<Result<Vec<TaskId>, _>>()?;
        if is_full {
            self.resync_asked = false;
            acts.push(Act::Keep { tasks });
        } else if !removed.is_empty() {
            acts.push(Act::Drop { tasks: removed });
        }
        self.version = Some(message.version);
        Ok(Meaning::Acts(acts))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use sealift_proto::agent::v1::Assignment;

    use super::*;

    fn task(n: i64) -> TaskId {
        format!("018f0000-0000-7000-8000-{n:012}").parse().unwrap()
    }

    fn assignment(n: i64, stop: bool) -> Assignment {
        let order = DateTime::from_timestamp(n, 0).unwrap().to_rfc3339().into_bytes();
        Assignment {
            task_id: task(n).to_string(),
            attempt: 1,
            order,
            stop,
        }
    }

    fn message(base: u64, version: u64, upserts: Vec<Assignment>) -> Assignments {
        Assignments {
            version,
            base,
            upserts,
            removals: Vec::new(),
        }
    }

    fn acts(meaning: Meaning) -> Vec<Act> {
        match meaning {
            Meaning::Acts(acts) => acts,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_set_says_what_to_do_and_what_to_keep() {
        let mut known = Known::default();
        let full = acts(
            known
                .take(message(0, 1, vec![assignment(1, false), assignment(2, true)]))
                .unwrap(),
        );
        assert!(matches!(&full[0], Act::Offer { task: t, attempt: 1, .. } if *t == task(1)));
        assert!(matches!(&full[2], Act::Stop { task: t } if *t == task(2)));
        assert_eq!(
            full[3],
            Act::Keep {
                tasks: vec![task(1), task(2)]
            }
        );
    }

    #[test]
    fn f13_a_gap_asks_for_the_full_set_once_and_nothing_is_done_meanwhile() {
        let mut known = Known::default();
        known.take(message(0, 1, vec![])).unwrap();
        assert!(acts(known.take(message(1, 2, vec![])).unwrap()).is_empty());
        assert_eq!(
            known.take(message(3, 4, vec![assignment(1, false)])),
            Ok(Meaning::Gap)
        );
        assert_eq!(
            known.take(message(4, 5, vec![assignment(1, false)])),
            Ok(Meaning::Waiting)
        );
        assert_eq!(
            acts(known.take(message(0, 1, vec![])).unwrap()),
            [Act::Keep { tasks: vec![] }]
        );
        assert!(acts(known.take(message(1, 2, vec![])).unwrap()).is_empty());
    }

    #[test]
    fn removals_say_what_needs_nothing_more() {
        let mut known = Known::default();
        known.take(message(0, 1, vec![assignment(1, false)])).unwrap();
        let removal = Assignments {
            removals: vec![task(1).to_string()],
            ..message(1, 2, vec![assignment(2, false)])
        };
        let acts = acts(known.take(removal).unwrap());
        assert!(matches!(&acts[0], Act::Offer { task: t, .. } if *t == task(2)));
        assert_eq!(acts[1], Act::Drop { tasks: vec![task(1)] });
        let odd = Assignments {
            removals: vec!["x".to_owned()],
            ..message(2, 3, vec![])
        };
        assert!(known.take(odd).is_err());
    }

    #[test]
    fn f13_an_increment_that_comes_twice_is_a_gap() {
        let mut known = Known::default();
        known.take(message(0, 1, vec![])).unwrap();
        known.take(message(1, 2, vec![])).unwrap();
        assert_eq!(
            known.take(message(1, 2, vec![assignment(1, false)])),
            Ok(Meaning::Gap)
        );
    }

    #[test]
    fn malformed_messages_are_refused() {
        let mut known = Known::default();
        assert!(known.take(message(0, 0, vec![])).is_err());
        let odd = Assignment {
            task_id: "x".into(),
            ..assignment(1, false)
        };
        assert!(known.take(message(0, 1, vec![odd])).is_err());
        let large = Assignment {
            order: vec![0; ENVELOPE_BYTES + 1],
            ..assignment(1, false)
        };
        assert!(known.take(message(0, 1, vec![large])).is_err());
    }
}
