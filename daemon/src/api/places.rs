//! The places of connections: so many, and none of them to be had by doing nothing.
//!
//! The idea: a connection that waits for its client (for a handshake, for a request, for
//! the rest of one) may be closed when another client comes and all places are taken;
//! the one that has waited longest goes first. What is being answered is left alone. So
//! no number of idle connections keeps anybody out.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How soon the next one is asked to go, where the one before takes its time.
const AGAIN: Duration = Duration::from_millis(50);

/// All places.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

/// Connections that wait for their clients, the longest waiting first.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    queue: BTreeMap<u64, Arc<Notify>>,
}

impl Places {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(places)),
            waiting: Mutex::default(),
        })
    }

    /// A place for a connection that has been accepted; somebody who waits has to go
    /// if there is none.
    pub(crate) async fn take(self: &Arc<Self>) -> Place {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Place::new(self, Some(permit));
        }
        loop {
            self.make_room();
            let free = Arc::clone(&self.free).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(AGAIN, free).await {
                // The semaphore is never closed.
                return Place::new(self, permit.ok());
            }
        }
    }

    fn make_room(&self) {
        if let Some((_, longest)) = self.waiting.lock().queue.pop_first() {
            longest.notify_one();
        }
    }

    /// Waits until all `places` are free.
    pub(crate) async fn all(&self, places: usize) {
        let all = u32::try_from(places).unwrap_or(u32::MAX);
        let _ = self.free.acquire_many(all).await;
    }
}

/// A place, given back when the last copy is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Arc<Places>,
    /// Its number in the queue, while it waits.
    number: Mutex<Option<u64>>,
    go: Arc<Notify>,
    /// Whether the last that happened is an answer, some of which may not be sent yet.
    answered: AtomicBool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    fn new(places: &Arc<Places>, permit: Option<OwnedSemaphorePermit>) -> Self {
        let place = Self(Arc::new(Inner {
            places: Arc::clone(places),
            number: Mutex::new(None),
            go: Arc::default(),
            answered: AtomicBool::new(false),
            _permit: permit,
        }));
        place.wait();
        place
    }

    /// The connection waits for its client from now on.
    fn wait(&self) {
        let mut number = self.0.number.lock();
        let mut waiting = self.0.places.waiting.lock();
        if number.is_none() {
            let next = waiting.next;
            waiting.next = next.wrapping_add(1);
            waiting.queue.insert(next, Arc::clone(&self.0.go));
            *number = Some(next);
        }
    }

    /// The client waits for us.
    fn work(&self) {
        self.0.answered.store(false, Ordering::Relaxed);
        self.0.leave();
    }

    /// A request has come; it is being answered until what is returned is dropped.
    pub(crate) fn answering(&self) -> Answering {
        self.work();
        Answering(self.clone())
    }

    /// The rest of a request is waited for, until what is returned is dropped.
    pub(crate) fn listening(&self) -> Listening {
        self.wait();
        Listening(self.clone())
    }

    /// When the connection has to go: at once, unless it [has
    /// answered](Self::has_answered).
    pub(crate) async fn must_go(&self) {
        self.0.go.notified().await;
    }

    pub(crate) fn has_answered(&self) -> bool {
        self.0.answered.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn leave(&self) {
        let number = self.number.lock().take();
        if let Some(number) = number {
            self.places.waiting.lock().queue.remove(&number);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answering(Place);

impl Answering {
    /// A body during which it goes on.
    pub(crate) fn during(self, body: Body) -> Body {
        Body::new(Answer {
            body,
            _answering: self,
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.answered.store(true, Ordering::Relaxed);
        self.0.wait();
    }
}

/// A request of which not all is there.
#[derive(Debug)]
pub(crate) struct Listening(Place);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.work();
    }
}

struct Answer {
    body: Body,
    _answering: Answering,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_longest_makes_room_and_who_is_answered_stays() {
        let places = Places::new(3);
        let (first, second, third) = (
            places.take().await,
            places.take().await,
            places.take().await,
        );
        let answering = first.answering();
        let room = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        second.must_go().await;
        drop(second);
        let fourth = room.await.unwrap();
        // The first waits again, and has done so for the shortest time.
        drop(answering);
        assert!(first.has_answered() && !third.has_answered());
        places.make_room();
        third.must_go().await;
        places.make_room();
        fourth.must_go().await;
        let answering = first.answering();
        let listening = first.listening();
        places.make_room();
        first.must_go().await;
        assert!(!first.has_answered());
        drop((listening, answering));
        drop((first, third, fourth));
        places.all(3).await;
        assert!(places.waiting.lock().queue.is_empty());
    }
}
