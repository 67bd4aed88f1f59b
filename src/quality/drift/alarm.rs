//! A signal's state, which neither one odd window nor a value at the threshold makes flicker.

use std::cmp::Ordering;

use serde::Serialize;

/// How a signal stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As usual.
    #[default]
    Ok,
    /// Other than usual.
    Warning,
    /// Far from usual.
    Drifted,
}

impl State {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Drifted => "drifted",
        }
    }
}

/// The state of one signal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alarm {
    /// From where on it is a warning, and drift.
    thresholds: [f64; 2],
    /// Part of a threshold below which a value must fall for the state to.
    release: f64,
    /// Windows in a row that must agree.
    windows: u32,
    state: State,
    /// How many of the latest windows speak, in a row, for a higher state or for a lower one, and the
    /// nearest that any of them speaks for.
    pending: Option<(State, u32)>,
}

impl Alarm {
    /// An alarm at [`State::Ok`].
    pub fn new(warning: f64, drifted: f64, release: f64, windows: u32) -> Self {
        Self {
            thresholds: [warning, drifted],
            release,
            windows: windows.max(1),
            state: State::Ok,
            pending: None,
        }
    }

    /// Takes a window's value in; returns the state after it.
    pub fn observe(&mut self, value: f64) -> State {
        let says = self.reads(value);
        let direction = says.cmp(&self.state);
        let (to, count) = match (direction, self.pending) {
            (Ordering::Equal, _) => {
                self.pending = None;
                return self.state;
            }
            (_, Some((before, count))) if before.cmp(&self.state) == direction => {
                // The state goes as far as all of these windows allow.
                let nearest = if direction == Ordering::Greater {
                    before.min(says)
                } else {
                    before.max(says)
                };
                (nearest, count + 1)
            }
            _ => (says, 1),
        };
        if count >= self.windows {
            self.state = to;
            self.pending = None;
        } else {
            self.pending = Some((to, count));
        }
        self.state
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    fn reads(&self, value: f64) -> State {
        let holds = |threshold: f64, state: State| {
            let threshold = if self.state >= state {
                threshold * self.release
            } else {
                threshold
            };
            value >= threshold
        };
        let [warning, drifted] = self.thresholds;
        if holds(drifted, State::Drifted) {
            State::Drifted
        } else if holds(warning, State::Warning) {
            State::Warning
        } else {
            State::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_odd_window_is_no_alert_and_two_are() {
        let mut alarm = Alarm::new(0.1, 0.25, 0.8, 2);
        assert_eq!(alarm.observe(0.9), State::Ok);
        assert_eq!(alarm.observe(0.0), State::Ok);
        assert_eq!(alarm.observe(0.9), State::Ok);
        assert_eq!(alarm.observe(0.15), State::Warning);
        assert_eq!(alarm.observe(0.9), State::Warning);
        assert_eq!(alarm.observe(0.9), State::Drifted);
    }

    #[test]
    fn a_value_at_the_threshold_does_not_flicker() {
        let mut alarm = Alarm::new(0.1, 0.25, 0.8, 1);
        assert_eq!(alarm.observe(0.1), State::Warning);
        for _ in 0..5 {
            assert_eq!(alarm.observe(0.095), State::Warning);
            assert_eq!(alarm.observe(0.105), State::Warning);
        }
        assert_eq!(alarm.observe(0.079), State::Ok);
        assert_eq!(alarm.observe(0.095), State::Ok);
    }

    #[test]
    fn it_falls_as_slowly_as_it_rises() {
        let mut alarm = Alarm::new(0.1, 0.25, 0.8, 2);
        for _ in 0..2 {
            alarm.observe(0.5);
        }
        assert_eq!(alarm.state(), State::Drifted);
        assert_eq!(alarm.observe(0.0), State::Drifted);
        assert_eq!(alarm.observe(0.15), State::Warning);
        assert_eq!(alarm.observe(0.0), State::Warning);
        assert_eq!(alarm.observe(0.0), State::Ok);
    }
}
