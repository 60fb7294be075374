//! What a session says to its agent. Saying never waits, so that an agent that does not read holds nothing up (F19): what the
//! stream has no room for waits here, in order, and an agent that takes nothing for too long is cut.

use std::{collections::VecDeque, time::Duration};

use sealift_common::error::Reason;
use sealift_proto::agent::v1::{ConnectResponse, connect_response::Message};
use tokio::{
    sync::mpsc::{Sender, error::TrySendError},
    time::{Instant, timeout_at},
};
use tonic::Status;

use crate::status::ApiError;

/// Messages in the stream's own buffer.
pub const BUFFERED: usize = 4;
/// How long an agent may take for one message.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most messages that wait. Assignments are as many as the agent has live tasks, and nothing new is assigned while any waits.
const WAITING: usize = 4_096;

/// The way out of a session.
#[derive(Debug)]
pub struct Outgoing {
    stream: Sender<Result<ConnectResponse, Status>>,
    waiting: VecDeque<ConnectResponse>,
    /// When the agent must have taken the next one.
    until: Instant,
}

impl Outgoing {
    /// Into this stream.
    pub fn new(stream: Sender<Result<ConnectResponse, Status>>) -> Self {
        Self {
            stream,
            waiting: VecDeque::new(),
            until: Instant::now(),
        }
    }

    /// Whether something waits: [`Outgoing::flush`] has to be polled.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Says something, after all that was said before.
    pub fn say(&mut self, message: Message) -> Result<(), Status> {
        let response = ConnectResponse {
            message: Some(message),
        };
        if self.waiting.len() >= WAITING {
            return Err(unread());
        }
        if self.is_waiting() {
            self.waiting.push_back(response);
            return Ok(());
        }
        match self.stream.try_send(Ok(response)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Ok(response))) => {
                self.waiting.push_back(response);
                self.until = Instant::now() + PATIENCE;
                Ok(())
            }
            Err(_) => Err(gone()),
        }
    }

    /// Moves one message on. May be dropped at any time without losing it.
    pub async fn flush(&mut self) -> Result<(), Status> {
        let room = timeout_at(self.until, self.stream.reserve())
            .await
            .map_err(|_| unread())?
            .map_err(|_| gone())?;
        if let Some(response) = self.waiting.pop_front() {
            room.send(Ok(response));
        }
        self.until = Instant::now() + PATIENCE;
        Ok(())
    }

    /// The last word, if there is room for it: an agent that does not read finds the stream at its end.
    pub fn last(&self, word: Result<Message, Status>) {
        let word = word.map(|message| ConnectResponse {
            message: Some(message),
        });
        drop(self.stream.try_send(word));
    }
}

fn unread() -> Status {
    ApiError::new(
        Reason::Overloaded,
        "the agent does not read what it is sent",
        "it connects again by itself",
    )
    .into()
}

fn gone() -> Status {
    Status::cancelled("the agent is gone")
}

#[cfg(test)]
mod tests {
    use sealift_proto::agent::v1::ReportAck;
    use tokio::sync::mpsc;
    use tonic::Code;

    use super::*;

    fn ack(number: u64) -> Message {
        Message::ReportAck(ReportAck { number })
    }

    #[tokio::test]
    async fn f19_more_than_the_stream_holds_waits_and_arrives_in_order() {
        let (sender, mut stream) = mpsc::channel(BUFFERED);
        let mut outgoing = Outgoing::new(sender);
        for number in 1..=100 {
            outgoing.say(ack(number)).unwrap();
        }
        for number in 1..=100 {
            let said = stream.recv().await.unwrap().unwrap();
            assert_eq!(said.message, Some(ack(number)));
            if outgoing.is_waiting() {
                outgoing.flush().await.unwrap();
            }
        }
        outgoing.say(ack(101)).unwrap();
        assert!(!outgoing.is_waiting());
    }

    #[tokio::test]
    async fn f19_an_agent_that_takes_nothing_is_cut() {
        let (sender, _stream) = mpsc::channel(1);
        let mut outgoing = Outgoing::new(sender);
        let mut said = 0;
        while outgoing.say(ack(said)).is_ok() {
            said += 1;
        }
        assert_eq!(said, WAITING as u64 + 1);
        outgoing.until = Instant::now();
        assert_eq!(
            outgoing.flush().await.unwrap_err().code(),
            Code::ResourceExhausted
        );
    }
}
