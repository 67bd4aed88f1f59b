//! A model's manifest, `model.toml`: what the model does and how it is batched.
//!
//! A model folder without one is served too: [`ModelManifest::infer`] reads what it can from the
//! Hugging Face files beside the weights.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use super::warmup::{CanaryConfig, CanaryInput, WarmupConfig, WarmupPrompt, WarmupShape};
use super::{
    CacheConfig, CascadeConfig, ConfigError, DeviceChoice, DriftConfig, GenerateConfig, Precision,
    Quantize, RolloutConfig, ShareConfig, VersionsConfig, Violation, read_checked, rollout,
};

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Text to vector.
    Embed,
    /// Text to class probabilities.
    Classify,
    /// Query and document to a relevance score.
    Rerank,
    /// Text to labelled spans.
    Tokens,
    /// Prompt to text.
    Generate,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embed => "embed",
            Self::Classify => "classify",
            Self::Rerank => "rerank",
            Self::Tokens => "tokens",
            Self::Generate => "generate",
        })
    }
}

/// What happens to a row longer than `max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// Keep the beginning.
    Right,
    /// Keep the end.
    Left,
    /// Refuse the row.
    Error,
}

/// How an embedding model makes one vector of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    Last,
}

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Exactly one class holds.
    Softmax,
    /// Each class holds or not, on its own.
    Sigmoid,
}

/// A model's manifest. Only `task` must be given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// What the model does.
    pub task: Task,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// The weights' licence.
    #[serde(default)]
    pub license: String,
    /// What f32, f16 and bf16 weights are quantized to as they are loaded; unset leaves them as they
    /// are in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// The precision of an encoder's matrix products; unset, see [`ModelManifest::compute`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Precision>,
    /// Where the weights come from.
    #[serde(default)]
    pub source: SourceConfig,
    /// How input is cut.
    #[serde(default)]
    pub input: InputConfig,
    /// Settings of embedding models.
    #[serde(default)]
    pub embed: EmbedConfig,
    /// Settings of classifiers.
    #[serde(default)]
    pub classify: ClassifyConfig,
    /// When a batch leaves; not for models that generate.
    #[serde(default)]
    pub batching: BatchingConfig,
    /// Settings of models that generate.
    #[serde(default)]
    pub generate: GenerateConfig,
    /// Whether its answers are kept.
    #[serde(default)]
    pub cache: CacheConfig,
    /// Which model is asked where this one is not sure.
    #[serde(default)]
    pub cascade: CascadeConfig,
    /// What the model runs on.
    #[serde(default)]
    pub resources: ResourcesConfig,
    /// Which versions are loaded.
    #[serde(default)]
    pub versions: VersionsConfig,
    /// A version that answers a share of the requests.
    #[serde(default)]
    pub canary: ShareConfig,
    /// A version that gets copies of a share of the requests and whose answers go to nobody.
    #[serde(default)]
    pub shadow: ShareConfig,
    /// When a canary or shadow is promoted or rolled back by itself.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// What runs before a version is ready.
    #[serde(default)]
    pub warmup: WarmupConfig,
    /// Whether its rows are compared with what is usual for it.
    #[serde(default)]
    pub drift: DriftConfig,
}

/// Where weights come from, for `ferry fetch`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Repository on the Hugging Face Hub, `owner/name`.
    pub huggingface: String,
    /// Branch, tag or commit; empty for `main`.
    pub revision: String,
    /// Files to bring.
    pub files: Vec<String>,
}

/// How input is cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputConfig {
    /// Tokens a row may have, special tokens included; 0 for what the model's positions allow.
    pub max_tokens: usize,
    /// What happens to a longer row, unless the request says otherwise.
    pub truncation: Truncation,
}

impl Default for InputConfig {
    fn default() -> Self {
        Self {
            max_tokens: 0,
            truncation: Truncation::Right,
        }
    }
}

/// Settings of embedding models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedConfig {
    /// How one vector is made of a sequence.
    pub pooling: Pooling,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// Keep only the first so many dimensions (Matryoshka); 0 for all.
    pub dimensions: usize,
}

impl Default for EmbedConfig {
    fn default() -> Self {
        Self {
            pooling: Pooling::Mean,
            normalize: true,
            dimensions: 0,
        }
    }
}

/// Settings of classifiers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifyConfig {
    /// How logits become probabilities; unset takes it from `problem_type` in config.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
}

/// When a batch leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchingConfig {
    /// Rows of one batch.
    pub max_rows: usize,
    /// Tokens of one batch.
    pub max_tokens: usize,
    /// Longest time a row waits for company while an instance is idle, in milliseconds.
    pub max_queue_delay_ms: f64,
    /// Rows that may wait; more are refused with `RESOURCE_EXHAUSTED`.
    pub max_waiting_rows: usize,
    /// Whether a batch leaves as soon as an instance is idle and waiting would not pay.
    pub eager: bool,
}

impl Default for BatchingConfig {
    fn default() -> Self {
        Self {
            max_rows: 64,
            max_tokens: 2048,
            max_queue_delay_ms: 5.0,
            max_waiting_rows: 8192,
            eager: true,
        }
    }
}

impl BatchingConfig {
    /// [`BatchingConfig::max_queue_delay_ms`] as a duration.
    pub fn max_queue_delay(&self) -> Duration {
        Duration::from_secs_f64(self.max_queue_delay_ms / 1e3)
    }
}

/// What the model runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourcesConfig {
    /// Executors that run batches side by side; at least one for each device.
    pub instances: usize,
    /// Which device, or which GPUs; unset for the server's `models.device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceChoice>,
}

impl Default for ResourcesConfig {
    fn default() -> Self {
        Self {
            instances: 1,
            device: None,
        }
    }
}

impl ModelManifest {
    /// A manifest that says only what the model does.
    pub fn of(task: Task) -> Self {
        Self {
            task,
            description: String::new(),
            license: String::new(),
            quantize: None,
            compute: None,
            source: SourceConfig::default(),
            input: InputConfig::default(),
            embed: EmbedConfig::default(),
            classify: ClassifyConfig::default(),
            batching: BatchingConfig::default(),
            generate: GenerateConfig::default(),
            cache: CacheConfig::default(),
            cascade: CascadeConfig::default(),
            resources: ResourcesConfig::default(),
            versions: VersionsConfig::default(),
            canary: ShareConfig::default(),
            shadow: ShareConfig::default(),
            rollout: RolloutConfig::default(),
            warmup: WarmupConfig::default(),
            drift: DriftConfig::default(),
        }
    }

    /// What products are computed in on a machine that has instructions for bf16, or lacks them.
    /// Unless `compute` is set, that is bf16 for embeddings where it is fast, which are compared
    /// with each other and keep a cosine above 0.999; and f32 where a number is held against a
    /// threshold, or where `quantize` says what becomes of the weights.
    pub fn compute(&self, bf16_is_fast: bool) -> Precision {
        match self.compute {
            Some(precision) => precision,
            None if bf16_is_fast && self.task == Task::Embed && self.quantize.is_none() => {
                Precision::Bf16
            }
            None => Precision::F32,
        }
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`ConfigError`] with file and line when it can't be read or is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        read_checked(path, Self::validate)
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        let batching = &self.batching;
        Violation::unless(
            (1..=65_536).contains(&batching.max_rows),
            "batching.max_rows",
            batching.max_rows,
            "1 to 65536",
        )?;
        Violation::unless(
            (1..=1 << 22).contains(&batching.max_tokens),
            "batching.max_tokens",
            batching.max_tokens,
            "1 to 4194304",
        )?;
        Violation::unless(
            (0.0..=10_000.0).contains(&batching.max_queue_delay_ms),
            "batching.max_queue_delay_ms",
            batching.max_queue_delay_ms,
            "0 to 10000",
        )?;
        Violation::unless(
            (1..=1 << 20).contains(&batching.max_waiting_rows),
            "batching.max_waiting_rows",
            batching.max_waiting_rows,
            "1 to 1048576",
        )?;
        if let Some(compute) = self.compute {
            Violation::unless(
                self.task != Task::Generate,
                "compute",
                compute.name(),
                "nothing where task = \"generate\": quantize says in what a decoder computes",
            )?;
            Violation::unless(
                self.quantize.is_none() || compute == Precision::F32,
                "compute",
                compute.name(),
                "\"f32\", or nothing, beside quantize",
            )?;
        }
        self.generate.validate()?;
        rollout::validate(&self.versions, &self.canary, &self.shadow, &self.rollout)?;
        self.cache.validate()?;
        self.cascade.validate(self.task)?;
        self.warmup.validate(self.task)?;
        self.drift.validate()?;
        Violation::unless(
            self.task != Task::Generate || self.resources.instances == 1,
            "resources.instances",
            self.resources.instances,
            "1 where task = \"generate\": one instance batches all sequences",
        )?;
        let devices = self
            .resources
            .device
            .as_ref()
            .map_or(1, DeviceChoice::count);
        Violation::unless(
            self.task != Task::Generate || devices == 1,
            "resources.device",
            devices,
            "one device where task = \"generate\"",
        )?;
        Violation::unless(
            (1..=256).contains(&self.resources.instances),
            "resources.instances",
            self.resources.instances,
            "1 to 256",
        )?;
        Violation::unless(
            self.source.files.iter().all(|file| is_inside(file)),
            "source.files",
            self.source.files.join(", "),
            "relative paths without '..'",
        )
    }

    /// Reads what a model does from the Hugging Face files in `dir`: `config.json`'s
    /// `architectures`, and `1_Pooling/config.json` of sentence-transformers.
    ///
    /// A folder with a `*.gguf` and no `config.json` generates.
    ///
    /// Returns `None` when there is neither.
    pub fn infer(dir: &Path) -> Option<Self> {
        if !dir.join("config.json").exists() && find_gguf(dir).is_some() {
            return Some(Self::of(Task::Generate));
        }
        let config = read_json(&dir.join("config.json"))?;
        let architecture = config["architectures"][0].as_str().unwrap_or_default();
        let labels = config["id2label"]
            .as_object()
            .map(serde_json::Map::len)
            .or_else(|| config["num_labels"].as_u64().map(|count| count as usize));
        let task = if architecture.ends_with("ForCausalLM") {
            Task::Generate
        } else if architecture.ends_with("ForSequenceClassification") {
            if labels == Some(1) {
                Task::Rerank
            } else {
                Task::Classify
            }
        } else if architecture.ends_with("ForTokenClassification") {
            Task::Tokens
        } else {
            Task::Embed
        };
        let mut manifest = Self::of(task);
        if let Some(pooling) = read_json(&dir.join("1_Pooling/config.json")) {
            let set = |key: &str| pooling[key].as_bool().unwrap_or(false);
            manifest.embed.pooling = if set("pooling_mode_cls_token") {
                Pooling::Cls
            } else if set("pooling_mode_lasttoken") {
                Pooling::Last
            } else {
                Pooling::Mean
            };
        }
        if let Some(sentence) = read_json(&dir.join("sentence_bert_config.json")) {
            manifest.input.max_tokens = sentence["max_seq_length"].as_u64().unwrap_or(0) as usize;
        }
        Some(manifest)
    }
}

/// The GGUF file in a version's folder; the first by name where there are several.
pub fn find_gguf(dir: &Path) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "gguf")
        })
        .collect();
    files.sort();
    files.into_iter().next()
}

fn read_json(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Whether a relative path stays inside the folder it is relative to.
pub fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelManifest, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ModelManifest::read(file.path())
    }

    #[test]
    fn a_task_is_enough() {
        assert_eq!(
            parse("task = \"embed\"").unwrap(),
            ModelManifest::of(Task::Embed)
        );
    }

    #[test]
    fn weights_are_quantized_for_every_task_alike() {
        for task in ["embed", "generate"] {
            let manifest = parse(&format!("task = \"{task}\"\nquantize = \"q4_k\"")).unwrap();
            assert_eq!(manifest.quantize, Some(Quantize::Q4K));
        }
        let error = parse("task = \"embed\"\nquantize = \"q4\"").unwrap_err();
        assert!(error.to_string().contains("q4_k"), "{error}");
    }

    #[test]
    fn precision_is_chosen_for_encoders_and_not_beside_quantize() {
        let compute = |text: &str| parse(text).unwrap().compute(true);
        assert_eq!(compute("task = \"embed\""), Precision::Bf16);
        assert_eq!(compute("task = \"classify\""), Precision::F32);
        assert_eq!(
            compute("task = \"rerank\"\ncompute = \"int8\""),
            Precision::Int8
        );
        assert_eq!(
            compute("task = \"embed\"\nquantize = \"q8_0\""),
            Precision::F32
        );
        let embed = parse("task = \"embed\"").unwrap();
        assert_eq!(embed.compute(false), Precision::F32);

        for (text, hint) in [
            ("task = \"embed\"\ncompute = \"fp16\"", "bf16"),
            ("task = \"generate\"\ncompute = \"bf16\"", "quantize"),
            (
                "task = \"embed\"\nquantize = \"q8_0\"\ncompute = \"int8\"",
                "quantize",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn a_missing_task_is_named() {
        let error = parse("license = \"MIT\"").unwrap_err().to_string();
        assert!(error.contains("task"), "{error}");
    }

    #[test]
    fn a_cache_is_kept_only_where_it_is_asked_for_and_has_bounds() {
        let manifest = |cache: &str| parse(&format!("task = \"embed\"\n[cache]\n{cache}"));
        let sizes = |cache: &str| {
            let cache = manifest(cache).unwrap().cache;
            (cache.max_bytes(), cache.time_to_live())
        };
        assert_eq!(sizes(""), (None, None));
        let ten = Some(Duration::from_secs(10));
        assert_eq!(sizes("max_mib = 3\nttl_seconds = 10"), (Some(3 << 20), ten));
        for (wrong, line) in [
            ("max_mib = 9999999", "line 3"),
            ("max_mib = 1\nttl_seconds = 99999999", "line 4"),
            ("max_mb = 1", "line 3"),
        ] {
            let error = manifest(wrong).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn files_that_leave_the_folder_are_refused() {
        for path in ["../x", "/etc/passwd", "a/../../b", ""] {
            let text = format!("task = \"embed\"\n[source]\nfiles = [\"{path}\"]");
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains("line 3"), "{error}");
        }
    }

    #[test]
    fn a_folder_without_manifest_is_understood_from_its_configs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ModelManifest::infer(dir.path()), None);
        let config = |text: &str| std::fs::write(dir.path().join("config.json"), text).unwrap();

        config(r#"{"architectures":["BertModel"]}"#);
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        let pooling = dir.path().join("1_Pooling/config.json");
        std::fs::write(pooling, r#"{"pooling_mode_cls_token":true}"#).unwrap();
        let manifest = ModelManifest::infer(dir.path()).unwrap();
        assert_eq!(manifest.task, Task::Embed);
        assert_eq!(manifest.embed.pooling, Pooling::Cls);

        config(r#"{"architectures":["RobertaForSequenceClassification"],"id2label":{"0":"A"}}"#);
        assert_eq!(ModelManifest::infer(dir.path()).unwrap().task, Task::Rerank);
        config(r#"{"architectures":["BertForTokenClassification"]}"#);
        assert_eq!(ModelManifest::infer(dir.path()).unwrap().task, Task::Tokens);
    }
}
