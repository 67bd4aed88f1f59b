//! Rows from the async world to the executors, as `engine::dynamic` hands them over: callers reserve
//! room and send, the dispatcher owns the real `BatchQueue`, executors run and report. Here as the
//! protocol alone: one channel to the dispatcher, since shuttle has no `select!`.

use std::time::{Duration, Instant};

use ferry::batching::{Batch, BatchPolicy, BatchQueue, Decision, Priority, Row, RowId};
use shuttle::{
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread,
};

use super::dynamic_load::Load;
use crate::explore;

const MAX_WAITING: usize = 3;
const CALLERS: u64 = 3;
const ROWS: u64 = 2;

/// What the dispatcher is told.
enum News {
    Board(Vec<Row<Answered>>),
    Cancel(RowId),
    Done,
    /// A caller won't come again; when all have said so the engine is dropped.
    Gone,
}

/// A row's way back. Every one is used once: by its answer, or as it drops.
struct Answered(Arc<AtomicUsize>);

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn every_row_that_is_accepted_is_answered_once_and_leaves_no_trace_in_the_load() {
    explore(|| {
        let load = Arc::new(Load {
            waiting_rows: AtomicUsize::new(0),
            max_waiting_rows: MAX_WAITING,
            backlog_ns: std::array::from_fn(|_| AtomicU64::new(0)),
            fixed_ns: AtomicU64::new(0),
            token_ns: AtomicU64::new(0),
        });
        let answered = Arc::new(AtomicUsize::new(0));
        let (commands, news) = mpsc::channel();
        let (batches, staged) = mpsc::sync_channel(2);
        let executor = {
            let commands = commands.clone();
            thread::spawn(move || execute(&staged, &commands))
        };
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (load, answered) = (Arc::clone(&load), Arc::clone(&answered));
                let commands = commands.clone();
                thread::spawn(move || call(caller, &load, &answered, &commands))
            })
            .collect();
        drop(commands);
        let dispatcher = {
            let load = Arc::clone(&load);
            // Its end of the batches is dropped when it is done; the executor ends then.
            thread::spawn(move || dispatch(&news, &batches, &load))
        };
        let accepted: usize = callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .sum();
        dispatcher.join().unwrap();
        executor.join().unwrap();
        assert!(accepted >= ROWS as usize, "the first that comes finds room");
        assert_eq!(answered.load(SeqCst), accepted);
        assert_eq!(load.waiting_rows.load(SeqCst), 0);
    });
}

/// Submits some rows and takes one of them back; returns how many were accepted.
fn call(caller: u64, load: &Load, answered: &Arc<AtomicUsize>, commands: &Sender<News>) -> usize {
    let accepted = load.reserve(ROWS as usize).is_ok();
    assert!(load.waiting_rows.load(SeqCst) <= MAX_WAITING);
    if accepted {
        let row = |at: u64| Row {
            id: RowId::new(caller * ROWS + at),
            tokens: 1,
            arrived: Instant::now(),
            deadline: None,
            priority: Priority::NORMAL,
            tenant: Arc::from("tenant"),
            payload: Answered(Arc::clone(answered)),
        };
        let rows = (0..ROWS).map(row).collect();
        assert!(commands.send(News::Board(rows)).is_ok());
        if caller == 0 {
            assert!(commands.send(News::Cancel(RowId::new(1))).is_ok());
        }
    }
    assert!(commands.send(News::Gone).is_ok());
    if accepted { ROWS as usize } else { 0 }
}

fn dispatch(news: &Receiver<News>, batches: &SyncSender<Batch<Answered>>, load: &Load) {
    let mut queue = BatchQueue::new(BatchPolicy {
        max_rows: 2,
        max_tokens: 8,
        max_queue_delay: Duration::ZERO,
        max_waiting_rows: MAX_WAITING,
        eager: true,
    });
    let (mut out, mut gone) = (0, 0);
    let left = |rows: usize| load.waiting_rows.fetch_sub(rows, Relaxed);
    while gone < CALLERS || out > 0 || !queue.is_empty() {
        match news.recv().expect("the executor still has its end") {
            News::Board(rows) => {
                for row in rows {
                    let pushed = queue.push(row, Instant::now());
                    assert!(pushed.is_ok(), "room was reserved");
                }
            }
            News::Cancel(id) => {
                if queue.cancel(id).is_some() {
                    left(1);
                }
            }
            News::Done => out -= 1,
            News::Gone => gone += 1,
        }
        queue.check_invariants();
        let now = Instant::now();
        while out <= 1 {
            let batch = match queue.poll(now, out == 0) {
                Decision::Flush(batch) => batch,
                _ if gone == CALLERS && out == 0 => match queue.drain(now) {
                    Some(batch) => batch,
                    None => break,
                },
                Decision::WaitUntil(_) | Decision::Empty => break,
            };
            left(batch.rows.len());
            out += 1;
            assert!(batches.try_send(batch).is_ok(), "never full");
        }
    }
}

fn execute(staged: &Receiver<Batch<Answered>>, commands: &Sender<News>) {
    while let Ok(batch) = staged.recv() {
        // First the dispatcher, so that the next batch can leave while answers go out.
        let _ = commands.send(News::Done);
        drop(batch);
    }
}
