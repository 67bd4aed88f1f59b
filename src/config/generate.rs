//! The manifest's `[generate]`: how a model that generates is run.

use serde::{Deserialize, Serialize};

use super::{Violation, manifest::is_inside};

/// The numbers that keys and values are cached in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// 4 bytes a number.
    F32,
    /// 2 bytes a number.
    F16,
}

/// Settings of models that generate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// Sequences that run side by side.
    pub max_running: usize,
    /// Sequences that may wait beside; more are refused with `RESOURCE_EXHAUSTED`.
    pub max_waiting: usize,
    /// Tokens of one step. Long prompts are read in chunks of what the running sequences leave of
    /// it: a smaller budget keeps their tokens flowing, a larger one reads prompts sooner.
    pub max_step_tokens: usize,
    /// Tokens a block of the cache holds.
    pub block_size: usize,
    /// Memory for keys and values, in MiB.
    pub cache_mib: usize,
    /// The numbers they are kept in.
    pub cache_type: CacheType,
    /// Whether sequences that begin alike share the keys and values of what they have in common.
    pub share_prefixes: bool,
    /// A file with the chat template, beside the manifest, in place of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Tokens generated at most where a request doesn't say; 0 for what the context leaves.
    pub default_max_tokens: u32,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_running: 64,
            max_waiting: 1024,
            max_step_tokens: 256,
            block_size: 16,
            cache_mib: 1024,
            cache_type: CacheType::F16,
            share_prefixes: true,
            chat_template: None,
            default_max_tokens: 0,
        }
    }
}

impl GenerateConfig {
    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            (1..=4096).contains(&self.max_running),
            "generate.max_running",
            self.max_running,
            "1 to 4096",
        )?;
        Violation::unless(
            self.max_waiting <= 1 << 20,
            "generate.max_waiting",
            self.max_waiting,
            "0 to 1048576",
        )?;
        Violation::unless(
            (8..=256).contains(&self.block_size),
            "generate.block_size",
            self.block_size,
            "8 to 256",
        )?;
        Violation::unless(
            (1..=1 << 20).contains(&self.cache_mib),
            "generate.cache_mib",
            self.cache_mib,
            "1 to 1048576",
        )?;
        if let Some(file) = &self.chat_template {
            Violation::unless(
                is_inside(file),
                "generate.chat_template",
                file,
                "a relative path without '..'",
            )?;
        }
        Violation::unless(
            (self.max_running..=1 << 20).contains(&self.max_step_tokens),
            "generate.max_step_tokens",
            self.max_step_tokens,
            "generate.max_running to 1048576",
        )
    }
}
