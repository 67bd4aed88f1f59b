//! A version that is taken out of service, as `repository` does it: requests hold the loaded copy, the
//! table lets go of it, and the last who holds it tells the table, under the lock that changes it, and
//! whoever waits for it. Here as the protocol alone, since the table is an `ArcSwap`.

use shuttle::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

use crate::explore;

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Ready,
    Draining,
    Absent,
}

/// What the repository knows of the one version there is.
struct Entry {
    state: State,
    served: Option<Arc<Copy>>,
}

struct Inner {
    changing: Mutex<()>,
    table: Mutex<Entry>,
    settled: Condvar,
}

/// A loaded copy; its lease tells the repository when it is gone.
struct Copy {
    repository: Arc<Inner>,
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.repository.change(|entry| {
            assert_eq!(entry.state, State::Draining, "it was taken out first");
            entry.state = State::Absent;
            None
        });
    }
}

impl Inner {
    /// Changes the table, then tells everybody, and lets go of what was there not under the lock: the
    /// last holder comes back here.
    fn change(&self, change: impl FnOnce(&mut Entry) -> Option<Arc<Copy>>) {
        let changing = self.changing.lock().unwrap();
        let before = change(&mut self.table.lock().unwrap());
        self.settled.notify_all();
        drop(changing);
        drop(before);
    }

    /// A request's way in.
    fn find(&self) -> Option<Arc<Copy>> {
        self.table.lock().unwrap().served.clone()
    }

    fn wait_until_gone(&self) {
        let mut changing = self.changing.lock().unwrap();
        while self.table.lock().unwrap().state == State::Draining {
            changing = self.settled.wait(changing).unwrap();
        }
    }
}

#[test]
fn a_version_is_gone_when_its_last_request_is_and_whoever_waits_for_that_is_told() {
    explore(|| {
        let repository = Arc::new(Inner {
            changing: Mutex::new(()),
            table: Mutex::new(Entry {
                state: State::Ready,
                served: None,
            }),
            settled: Condvar::new(),
        });
        let copy = Arc::new(Copy {
            repository: Arc::clone(&repository),
        });
        repository.table.lock().unwrap().served = Some(copy);
        let requests: Vec<_> = (0..2)
            .map(|_| {
                let repository = Arc::clone(&repository);
                thread::spawn(move || {
                    if let Some(copy) = repository.find() {
                        let state = repository.table.lock().unwrap().state;
                        assert_ne!(state, State::Absent, "it is held");
                        drop(copy);
                    }
                })
            })
            .collect();
        let unload = {
            let repository = Arc::clone(&repository);
            thread::spawn(move || {
                repository.change(|entry| {
                    entry.state = State::Draining;
                    entry.served.take()
                });
                repository.wait_until_gone();
                assert_eq!(repository.table.lock().unwrap().state, State::Absent);
            })
        };
        unload.join().unwrap();
        for request in requests {
            request.join().unwrap();
        }
    });
}
