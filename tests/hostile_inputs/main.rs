//! Inputs that lie: the short form of the fuzz targets in `fuzz/`, which needs nothing but stable
//! Rust. Every seed of every target, and mutations of it: none makes a panic, a hang, or takes more
//! memory than a small multiple of itself. A test binary of its own, as it counts every allocation.
//!
//! The mutations are the same on every run. `FERRY_HOSTILE_SEED=7 cargo test --test hostile_inputs`
//! tries others, `FERRY_HOSTILE_MUTATIONS=5000` as many of each seed, `FERRY_HOSTILE_TARGET=stop_text`
//! one target only.

mod memory;
mod mutate;
#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use memory::Watched;
use mutate::{Random, mutate};
use targets::{TARGETS, Target};

/// A tiny model loads in a blink; a loop that a lie drives does not end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name of the threads that take inputs. They have the stack that a thread has by default, as the
/// server's have.
const TAKING: &str = "taking";

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What became of a target's inputs.
#[derive(Default)]
struct Tally {
    inputs: usize,
    most: usize,
    slowest: Duration,
    wrong: Vec<String>,
}

#[test]
fn no_seed_of_a_hostile_input_nor_its_mutations_panic_hang_or_fill_the_memory() {
    let seed = setting("FERRY_HOSTILE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mutations = setting("FERRY_HOSTILE_MUTATIONS").map(|count| count.parse().unwrap());
    let only = setting("FERRY_HOSTILE_TARGET");
    // What panics in a target is caught below; its message is told there.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(TAKING) {
            told(panic);
        }
    }));
    let mut wrong = Vec::new();
    let chosen = TARGETS
        .iter()
        .filter(|target| only.as_deref().is_none_or(|only| only == target.name));
    for target in chosen {
        let begun = Instant::now();
        let seeds = (target.seeds)();
        let tally = try_all(target, &seeds, mutations, seed);
        println!(
            "{:<18} {:>5} inputs, {:>5.1} s, the slowest {:>6.1?}, at most {:>9} bytes allocated",
            target.name,
            tally.inputs,
            begun.elapsed().as_secs_f64(),
            tally.slowest,
            tally.most
        );
        wrong.extend(tally.wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn try_all(target: &Target, seeds: &[Vec<u8>], mutations: Option<usize>, seed: u64) -> Tally {
    let mut tally = Tally::default();
    // What is made once for all inputs is not an input's.
    let name = format!("{}, once", target.name);
    let mut warmed = Tally::default();
    take(target, &seeds[0], &name, usize::MAX, &mut warmed);
    for (at, whole) in seeds.iter().enumerate() {
        for round in 0..=mutations.unwrap_or(target.mutations) {
            let mut input = whole.clone();
            let how = if round == 0 {
                "as it is".to_owned()
            } else {
                let mut random = Random::new(seed * 1_000_003 + (at * 10_007 + round) as u64);
                mutate(&mut input, (target.header)(whole), &mut random)
            };
            let name = format!("{} {at}.{round}, {how}", target.name);
            let (fixed, times) = target.memory;
            take(
                target,
                &input,
                &name,
                fixed + times * input.len(),
                &mut tally,
            );
        }
    }
    tally
}

/// Has a target take an input that may allocate so much.
fn take(target: &Target, input: &[u8], name: &str, allowed: usize, tally: &mut Tally) {
    tally.inputs += 1;
    let begun = Instant::now();
    let watched = Watched::begin();
    let (sender, receiver) = mpsc::channel();
    let (run, copy) = (target.run, input.to_vec());
    let taking = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&copy)));
        let _ = sender.send(outcome.map_err(|panic| text_of(&*panic)));
    };
    let thread = std::thread::Builder::new().name(TAKING.to_owned());
    thread.spawn(taking).unwrap();
    match receiver.recv_timeout(PATIENCE) {
        Err(late) => panic!("{name}: not done after {PATIENCE:?} ({late})"),
        Ok(Err(message)) => tally.wrong.push(format!("{name}: a panic: {message}")),
        Ok(Ok(())) => {}
    }
    let peak = watched.peak();
    tally.slowest = tally.slowest.max(begun.elapsed());
    tally.most = tally.most.max(peak);
    if peak > allowed {
        let told = format!("{name}: {peak} bytes, of an input that allows {allowed}");
        tally.wrong.push(told);
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("without words").to_owned()
}
