//! The lines in which rows of one priority level wait: one a tenant, served by deficit round robin.
//! Rows of the batching queue and sequences of the generation scheduler alike; `I` is their id.
//!
//! Source: Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin" (1996), with
//! tokens for bytes. A tenant whose turn it is may send rows for as many tokens as it has credit;
//! when its head row costs more, it gets a quantum of credit and the turn goes to the next.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// A row's name and length, which is all that the order depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<I> {
    /// Its name.
    pub id: I,
    /// What it costs of its tenant's credit.
    pub tokens: u32,
}

#[derive(Debug)]
struct Line<I> {
    places: VecDeque<Place<I>>,
    credit: u64,
}

/// One priority level. A tenant with nothing waiting leaves nothing behind.
#[derive(Debug)]
pub struct Lines<I> {
    quantum: u64,
    by_tenant: HashMap<Arc<str>, Line<I>>,
    /// Tenants with something waiting, the one whose turn it is first.
    turns: VecDeque<Arc<str>>,
}

impl<I: Copy + Eq> Lines<I> {
    /// No lines yet. `quantum` is the credit of one turn, in tokens.
    pub fn new(quantum: usize) -> Self {
        Self {
            quantum: quantum.max(1) as u64,
            by_tenant: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    /// Puts a row at the end of its tenant's line.
    pub fn push(&mut self, tenant: &Arc<str>, place: Place<I>) {
        match self.by_tenant.get_mut(tenant) {
            Some(line) => line.places.push_back(place),
            None => self.open(tenant, place),
        }
    }

    /// Puts a row at the head of its tenant's line: one that had been taken and must come again.
    pub fn push_front(&mut self, tenant: &Arc<str>, place: Place<I>) {
        match self.by_tenant.get_mut(tenant) {
            Some(line) => line.places.push_front(place),
            None => self.open(tenant, place),
        }
    }

    fn open(&mut self, tenant: &Arc<str>, place: Place<I>) {
        let line = Line {
            places: VecDeque::from([place]),
            credit: 0,
        };
        self.by_tenant.insert(Arc::clone(tenant), line);
        self.turns.push_back(Arc::clone(tenant));
    }

    /// The row whose turn it is. It stays so until it is taken by [`Lines::take`] (or its tenant,
    /// having been alone, is joined by another), so a row that does not fit a batch is not passed
    /// by shorter ones.
    pub fn head(&mut self) -> Option<Place<I>> {
        loop {
            let tenant = self.turns.front()?;
            let line = self.by_tenant.get_mut(tenant)?;
            let place = *line.places.front()?;
            if self.turns.len() == 1 || line.credit >= u64::from(place.tokens) {
                return Some(place);
            }
            line.credit += self.quantum;
            self.turns.rotate_left(1);
        }
    }

    /// Takes the row that [`Lines::head`] gave.
    pub fn take(&mut self) {
        let Some(tenant) = self.turns.front() else {
            return;
        };
        let Some(line) = self.by_tenant.get_mut(tenant) else {
            return;
        };
        if let Some(place) = line.places.pop_front() {
            line.credit = line.credit.saturating_sub(u64::from(place.tokens));
        }
        if line.places.is_empty() {
            self.by_tenant.remove(tenant);
            self.turns.pop_front();
        }
    }

    /// Takes a row out of the middle of its tenant's line.
    pub fn remove(&mut self, tenant: &Arc<str>, id: I) {
        let Some(line) = self.by_tenant.get_mut(tenant) else {
            return;
        };
        // Cancelled and expired rows tend to be the oldest, so this looks from the front.
        if let Some(at) = line.places.iter().position(|place| place.id == id) {
            line.places.remove(at);
        }
        if line.places.is_empty() {
            self.by_tenant.remove(tenant);
            self.turns.retain(|other| other != tenant);
        }
    }

    /// Asserts that turns and lines name the same tenants, that none is empty and that credit stays
    /// bounded, rows having at most `longest` tokens; returns how many rows wait.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self, longest: usize) -> usize {
        assert_eq!(
            self.turns.len(),
            self.by_tenant.len(),
            "a turn for each tenant"
        );
        let mut waiting = 0;
        for tenant in &self.turns {
            let line = &self.by_tenant[tenant];
            assert!(!line.places.is_empty(), "an empty line was kept");
            assert!(
                line.credit < longest as u64 + self.quantum,
                "a tenant is given credit only while its head row costs more than it has"
            );
            waiting += line.places.len();
        }
        waiting
    }
}
