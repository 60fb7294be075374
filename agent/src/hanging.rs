//! Hanging: work on file systems that may never answer, as a network file system whose server is gone. It is done off the threads that
//! serve connections and waited for up to a deadline; of one kind there is at most one under way, so that what hangs costs one
//! thread and not one more with every try.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

/// It did not answer before the deadline, or an earlier try of the same kind still has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the file system does not answer")]
pub struct Hangs;

/// What is under way, by kind.
#[derive(Debug)]
pub struct Hanging<K>(Arc<Mutex<BTreeSet<K>>>);

impl<K> Default for Hanging<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Takes its kind away from what is under way.
struct UnderWay<K: Ord>(Arc<Mutex<BTreeSet<K>>>, K);

impl<K: Ord> Drop for UnderWay<K> {
    fn drop(&mut self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.1);
    }
}

impl<K: Ord + Clone + Send + 'static> Hanging<K> {
    /// Does work of this kind.
    pub async fn within<T: Send + 'static>(
        &self,
        kind: K,
        deadline: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Hangs> {
        let is_first = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(kind.clone())
        };
        if !is_first {
            return Err(Hangs);
        }
        let under_way = UnderWay(self.0.clone(), kind);
        // It is over when the work is, not when nobody waits any more.
        let work = spawn_blocking(move || {
            let _under_way = under_way;
            work()
        });
        match timeout(deadline, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(defect)) => {
                tracing::error!(
                    error = &defect as &dyn std::error::Error,
                    "looking at a file system broke off"
                );
                Err(Hangs)
            }
            Err(_) => Err(Hangs),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn r14_what_hangs_is_not_waited_for_and_costs_one_thread_however_often_it_is_tried() {
        let hanging = Hanging::default();
        let (answer, question) = mpsc::channel::<()>();
        let hung = hanging.within("a", Duration::ZERO, move || question.recv()).await;
        assert_eq!(hung.map(drop), Err(Hangs));
        assert_eq!(
            hanging.within("a", LONG, || ()).await,
            Err(Hangs),
            "the first still hangs"
        );
        assert_eq!(hanging.within("b", LONG, || 1).await, Ok(1), "others do not");
        answer.send(()).unwrap();
        let again = async {
            while hanging.within("a", LONG, || ()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, again).await.unwrap();
    }
}
