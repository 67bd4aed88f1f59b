//! The log and trace settings of the protocol. Log levels are really changed; traces are told as they
//! are, and what Ferry does not have as off.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{
    api::proto::inference::{
        self as pb,
        log_settings_request::setting_value::ParameterChoice as Asked,
        log_settings_response::{SettingValue as LogValue, setting_value::ParameterChoice as Told},
        trace_setting_response::SettingValue as TraceValue,
    },
    error::RequestError,
    telemetry::{logs, traces::Tracer},
};

/// The log settings as last told.
#[derive(Debug, Default)]
pub struct LogState(Mutex<Option<LogLevels>>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct LogLevels {
    info: bool,
    warning: bool,
    error: bool,
    verbose: u32,
}

impl LogLevels {
    const START: Self = Self {
        info: true,
        warning: true,
        error: true,
        verbose: 0,
    };

    fn filter(self) -> &'static str {
        match self {
            Self { verbose: 2.., .. } => "info,ferry=trace",
            Self { verbose: 1, .. } => "info,ferry=debug",
            Self { info: true, .. } => "info",
            Self { warning: true, .. } => "warn",
            Self { error: true, .. } => "error",
            _ => "off",
        }
    }
}

impl LogState {
    /// Changes what is asked, and tells all.
    pub fn apply(
        &self,
        request: &pb::LogSettingsRequest,
    ) -> Result<pb::LogSettingsResponse, RequestError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.unwrap_or(LogLevels::START);
        let mut levels = before;
        for (name, value) in &request.settings {
            let field = || format!("settings.{}", name.chars().take(64).collect::<String>());
            let switch = |target: &mut bool| match value.parameter_choice {
                Some(Asked::BoolParam(on)) => {
                    *target = on;
                    Ok(())
                }
                _ => Err(RequestError::invalid(field(), "another type", "a bool")),
            };
            match name.as_str() {
                "log_info" => switch(&mut levels.info)?,
                "log_warning" => switch(&mut levels.warning)?,
                "log_error" => switch(&mut levels.error)?,
                "log_verbose_level" => match value.parameter_choice {
                    Some(Asked::Uint32Param(level)) => levels.verbose = level,
                    _ => return Err(RequestError::invalid(field(), "another type", "a uint32")),
                },
                "log_file" | "log_format" => {
                    let unchanged = matches!(
                        &value.parameter_choice,
                        Some(Asked::StringParam(text)) if text.is_empty() || text == "default"
                    );
                    if !unchanged {
                        return Err(RequestError::Unimplemented {
                            what: format!(
                                "{name}: logs go to standard error; see [log] in ferry.toml"
                            ),
                        });
                    }
                }
                _ => {
                    return Err(RequestError::invalid(
                        field(),
                        "a setting that isn't known",
                        "log_info, log_warning, log_error, log_verbose_level",
                    ));
                }
            }
        }
        if levels != before {
            logs::set_filter(levels.filter()).map_err(RequestError::internal)?;
            *state = Some(levels);
        }
        Ok(tell(levels))
    }
}

fn tell(levels: LogLevels) -> pb::LogSettingsResponse {
    let setting = |name: &str, value| {
        let value = LogValue {
            parameter_choice: Some(value),
        };
        (name.to_owned(), value)
    };
    pb::LogSettingsResponse {
        settings: HashMap::from([
            setting("log_file", Told::StringParam(String::new())),
            setting("log_info", Told::BoolParam(levels.info)),
            setting("log_warning", Told::BoolParam(levels.warning)),
            setting("log_error", Told::BoolParam(levels.error)),
            setting("log_verbose_level", Told::Uint32Param(levels.verbose)),
            setting("log_format", Told::StringParam("default".to_owned())),
        ]),
    }
}

/// Tells the trace settings: spans go to OpenTelemetry where `[traces]` says so. They can't be changed
/// while the server runs.
pub fn trace(
    request: &pb::TraceSettingRequest,
    tracer: &Tracer,
) -> Result<pb::TraceSettingResponse, RequestError> {
    let told = trace_settings(tracer);
    for (name, setting) in &request.settings {
        let field = || format!("settings.{}", name.chars().take(64).collect::<String>());
        let Some((_, value)) = told.iter().find(|(told, _)| told == name) else {
            let known: Vec<_> = told.iter().map(|(name, _)| *name).collect();
            let found = "a setting that isn't known";
            return Err(RequestError::invalid(field(), found, known.join(", ")));
        };
        // None given asks for the default, which is what the file says.
        if setting.value.iter().any(|asked| asked != value) {
            return Err(RequestError::Unimplemented {
                what: format!("another {name} than '{value}': see [traces] in ferry.toml"),
            });
        }
    }
    let settings = told.into_iter().map(|(name, value)| {
        let value = TraceValue { value: vec![value] };
        (name.to_owned(), value)
    });
    Ok(pb::TraceSettingResponse {
        settings: settings.collect(),
    })
}

fn trace_settings(tracer: &Tracer) -> [(&'static str, String); 6] {
    // Triton's rate is how many requests there are to a traced one.
    let rate = tracer
        .ratio()
        .filter(|&ratio| ratio > 0.0)
        .map_or(0, |ratio| (1.0 / ratio).round() as u64);
    let (level, mode, count) = if tracer.is_on() {
        ("TIMESTAMPS", "opentelemetry", "-1")
    } else {
        ("OFF", "triton", "0")
    };
    [
        ("trace_level", level.to_owned()),
        ("trace_rate", rate.to_string()),
        ("trace_count", count.to_owned()),
        ("log_frequency", "0".to_owned()),
        ("trace_file", String::new()),
        ("trace_mode", mode.to_owned()),
    ]
}
