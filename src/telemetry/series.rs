//! The series of a model version go when the version has gone: a gauge says how things are, and of what
//! is not there any more there is nothing to say. Counters stay a while, for who has yet to scrape them,
//! so that a server whose versions come and go has no more series after a year than after a day.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    Gauge, Histogram, IntCounter, IntGauge, Registry,
    core::{Collector, MetricVec, MetricVecBuilder},
    proto::MetricType,
};

/// Versions of a model that have gone and whose counters are still told, at most.
const KEPT: usize = 16;

/// Something that series are told of.
pub(super) trait Family: Collector + Clone + 'static {
    /// Forgets the series of a model version.
    fn forget(&self, _model: &str, _version: &str) {}
}

impl Family for Gauge {}
impl Family for Histogram {}
impl Family for IntCounter {}
impl Family for IntGauge {}

impl<B: MetricVecBuilder + 'static> Family for MetricVec<B>
where
    Self: Collector,
{
    fn forget(&self, model: &str, version: &str) {
        for family in self.collect() {
            for series in family.get_metric() {
                let labels: HashMap<&str, &str> = series
                    .get_label()
                    .iter()
                    .map(|label| (label.name(), label.value()))
                    .collect();
                let has = |label: &str, value: &str| labels.get(label) == Some(&value);
                // A trial is of two versions; it is over when either has gone.
                let of_version =
                    ["version", "stable", "candidate"].map(|label| has(label, version));
                if has("model", model) && of_version.contains(&true) {
                    // Fails where it has gone already.
                    let _ = self.remove(&labels);
                }
            }
        }
    }
}

type Forget = Box<dyn Fn(&str, &str) + Send + Sync>;

/// Takes families in.
pub(super) struct Registrar {
    registry: Registry,
    series: Mutex<Known>,
}

/// Which versions there are, and what is told of them.
#[derive(Default)]
struct Known {
    gauges: Vec<Forget>,
    others: Vec<Forget>,
    /// Who holds the series of a version, by model and version.
    held: HashMap<[String; 2], usize>,
    /// Versions that have gone, by model; the first to go first.
    gone: HashMap<String, VecDeque<String>>,
}

/// Keeps the series of a version.
#[derive(Debug)]
pub(super) struct Lease {
    series: Arc<Series>,
    version: [String; 2],
}

/// The series of all versions.
pub(super) struct Series(Mutex<Known>);

impl Registrar {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            series: Mutex::default(),
        }
    }

    /// As [`Registry::register`].
    pub(super) fn register<F: Family>(&self, family: Box<F>) -> prometheus::Result<()> {
        let told = family.clone();
        let is_gauge = told
            .collect()
            .first()
            .is_some_and(|family| family.get_field_type() == MetricType::GAUGE);
        self.registry.register(family)?;
        let mut known = lock(&self.series);
        let families = if is_gauge {
            &mut known.gauges
        } else {
            &mut known.others
        };
        families.push(Box::new(move |model, version| told.forget(model, version)));
        Ok(())
    }

    pub(super) fn finish(self) -> Arc<Series> {
        Arc::new(Series(self.series))
    }
}

impl Series {
    /// Keeps the series of a version, until the last who does so is gone.
    pub(super) fn hold(self: &Arc<Self>, model: &str, version: &str) -> Lease {
        let version = [model.to_owned(), version.to_owned()];
        let mut known = lock(&self.0);
        *known.held.entry(version.clone()).or_default() += 1;
        if let Some(gone) = known.gone.get_mut(model) {
            gone.retain(|gone| *gone != version[1]);
        }
        Lease {
            series: Arc::clone(self),
            version,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Held to the end: who loads the version again meanwhile waits, and makes its series anew.
        let mut known = lock(&self.series.0);
        let Some(held) = known.held.get_mut(&self.version) else {
            return;
        };
        *held -= 1;
        if *held > 0 {
            return;
        }
        known.held.remove(&self.version);
        let [model, version] = &self.version;
        for forget in &known.gauges {
            forget(model, version);
        }
        let gone = known.gone.entry(model.clone()).or_default();
        gone.push_back(version.clone());
        if gone.len() > KEPT
            && let Some(oldest) = gone.pop_front()
        {
            for forget in &known.others {
                forget(model, &oldest);
            }
        }
    }
}

impl std::fmt::Debug for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Series").finish_non_exhaustive()
    }
}

fn lock(known: &Mutex<Known>) -> std::sync::MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, IntGaugeVec, Opts, TextEncoder};

    use super::*;

    struct Page {
        registry: Registry,
        series: Arc<Series>,
        here: IntGaugeVec,
        done: IntCounterVec,
    }

    impl Page {
        fn new() -> Self {
            let registry = Registry::new();
            let registrar = Registrar::new(&registry);
            let labels = &["model", "version", "device"];
            let here = IntGaugeVec::new(Opts::new("here", "h"), labels).unwrap();
            let done = IntCounterVec::new(Opts::new("done", "d"), labels).unwrap();
            registrar.register(Box::new(here.clone())).unwrap();
            registrar.register(Box::new(done.clone())).unwrap();
            Self {
                registry,
                series: registrar.finish(),
                here,
                done,
            }
        }

        fn load(&self, model: &str, version: &str) -> Lease {
            let lease = self.series.hold(model, version);
            self.here.with_label_values(&[model, version, "cpu"]).set(1);
            self.done.with_label_values(&[model, version, "cpu"]).inc();
            lease
        }

        fn has(&self, family: &str, model: &str, version: &str) -> bool {
            let page = TextEncoder::new()
                .encode_to_string(&self.registry.gather())
                .unwrap();
            let series =
                format!("{family}{{device=\"cpu\",model=\"{model}\",version=\"{version}\"}} ");
            page.contains(&series)
        }
    }

    #[test]
    fn gauges_go_with_their_version_and_with_no_other() {
        let page = Page::new();
        let (one, other) = (page.load("a", "1"), page.load("b", "1"));
        // Loaded again under the same number: the series are those of the new copy now.
        let again = page.load("a", "1");
        drop(one);
        assert!(page.has("here", "a", "1"));
        drop(again);
        assert!(!page.has("here", "a", "1") && page.has("done", "a", "1"));
        assert!(page.has("here", "b", "1"));
        drop(other);
        let back = page.load("a", "1");
        assert!(page.has("here", "a", "1"));
        drop(back);
    }

    #[test]
    fn counters_stay_for_some_versions_and_not_for_ever() {
        let page = Page::new();
        let stays = page.load("a", "0");
        for version in 1..=KEPT + 5 {
            drop(page.load("a", &version.to_string()));
        }
        assert!(page.has("done", "a", "0"));
        let left = (1..=KEPT + 5).filter(|version| page.has("done", "a", &version.to_string()));
        assert_eq!(left.count(), KEPT);
        assert!(page.has("done", "a", &(KEPT + 5).to_string()));
        drop(stays);
    }
}
