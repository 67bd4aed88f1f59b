//! The processors' time that this process takes.

use std::time::Instant;

/// Ticks of the system's clock of processors in a second, which is 100 wherever Linux runs
/// (`USER_HZ`, proc(5)).
const TICKS: f64 = 100.0;

/// Measures from one reading to the next.
#[derive(Debug)]
pub struct CpuClock {
    last: Option<(Instant, f64)>,
    processors: f64,
}

impl CpuClock {
    /// Begins now.
    pub fn start() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            last: seconds().map(|seconds| (Instant::now(), seconds)),
            processors: processors as f64,
        }
    }

    /// The share of the processors that were kept busy since the last reading, 0 to 1; `None` where the
    /// system doesn't tell.
    pub fn share(&mut self) -> Option<f64> {
        let now = (Instant::now(), seconds()?);
        let (then, before) = self.last.replace(now)?;
        let elapsed = (now.0 - then).as_secs_f64();
        (elapsed > 0.0).then(|| ((now.1 - before) / elapsed / self.processors).clamp(0.0, 1.0))
    }
}

/// Processors' seconds that the process has taken.
fn seconds() -> Option<f64> {
    of_stat(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// The same from the text of `/proc/self/stat`: user and system time are its 14th and 15th fields, and
/// the second, a name in parentheses, may have anything in it.
fn of_stat(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_past_whatever_the_process_is_called() {
        let stat = "7 (a) 1 b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(of_stat(stat), Some(3.0));
        assert_eq!(of_stat("7"), None);
    }

    #[test]
    fn a_busy_process_takes_a_share_of_the_processors() {
        let mut clock = CpuClock::start();
        let mut sum = 0_u64;
        loop {
            // Until the system's clock has ticked.
            for number in 0..10_000_000_u64 {
                sum = sum.wrapping_add(std::hint::black_box(number));
            }
            let share = clock.share().unwrap();
            assert!((0.0..=1.0).contains(&share), "{share}");
            if share > 0.0 {
                break;
            }
        }
        std::hint::black_box(sum);
    }
}
