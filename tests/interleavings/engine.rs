//! The engine's own files, over shuttle's atomics: the counters of its load, and the flag by which a
//! stream is paused and goes on.

pub mod sync {
    pub use shuttle::sync::atomic;
}

#[allow(dead_code)]
#[path = "../../src/engine/continuous/load.rs"]
mod continuous_load;
#[allow(dead_code)]
#[path = "../../src/engine/dynamic/load.rs"]
mod dynamic_load;
#[path = "../../src/engine/continuous/pause.rs"]
mod pause;

mod handover;

use shuttle::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

use self::{continuous_load::Load, pause::Pause};
use crate::explore;

#[test]
fn no_more_sequences_are_alive_than_may_be_whoever_comes_and_goes() {
    explore(|| {
        let load = Arc::new(Load::new(1, 2));
        let comers: Vec<_> = [1, 2, 3, 1]
            .into_iter()
            .map(|sequences| {
                let load = Arc::clone(&load);
                thread::spawn(move || match load.reserve(sequences) {
                    Ok(()) => {
                        assert!(load.alive() <= load.most());
                        load.ended(sequences);
                    }
                    Err(alive) => assert!(alive + sequences > load.most()),
                })
            })
            .collect();
        for comer in comers {
            comer.join().unwrap();
        }
        assert_eq!(load.alive(), 0);
    });
}

/// Events that a stream holds, few, so that it is often full.
const UNREAD: usize = 8;
const EVENTS: usize = 20;

/// A writer that pauses when its stream is nearly full and then waits for the reader's word alone, and
/// a reader. `second_look` is what the writer sees of the room there is, when it has raised the flag.
fn write_and_read(second_look: fn(usize) -> bool) {
    let pause = Arc::new(Pause::default());
    // As tokio's channel: room is taken before an event is in line, and given back when it is out.
    let room = Arc::new(AtomicUsize::new(UNREAD));
    let in_line = Arc::new(AtomicUsize::new(0));
    let (events, stream) = mpsc::channel();
    let (commands, inbox) = mpsc::channel();
    let reader = {
        let (pause, room, in_line) = (Arc::clone(&pause), Arc::clone(&room), Arc::clone(&in_line));
        thread::spawn(move || {
            for expected in 0..EVENTS {
                assert_eq!(stream.recv(), Ok(expected));
                in_line.fetch_sub(1, SeqCst);
                room.fetch_add(1, SeqCst);
                if in_line.load(SeqCst) <= UNREAD / 4 && pause.take() {
                    commands.send(()).unwrap();
                }
            }
        })
    };
    for event in 0..EVENTS {
        assert!(room.load(SeqCst) > 0, "it was to pause before");
        room.fetch_sub(1, SeqCst);
        in_line.fetch_add(1, SeqCst);
        events.send(event).unwrap();
        // Words from before a pause are for nobody.
        while inbox.try_recv().is_ok() {}
        let is_nearly_full = room.load(SeqCst) < 2;
        if is_nearly_full && pause.raise(|| second_look(room.load(SeqCst))) {
            // One that came since belongs to this pause.
            let asked = inbox.recv();
            if event + 1 < EVENTS {
                asked.unwrap();
            }
            pause.lower();
        }
    }
    reader.join().unwrap();
}

#[test]
fn a_paused_sequence_goes_on_when_its_reader_has_caught_up() {
    explore(|| write_and_read(|room| room >= UNREAD / 2));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_its_second_look_a_pause_would_be_forgotten() {
    explore(|| write_and_read(|_| false));
}
