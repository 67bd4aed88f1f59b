//! The log and trace settings of the protocol. Log levels are really changed; what Ferry does not
//! have is told as off, and can't be turned on.

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
    telemetry::logs,
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

/// Tells the trace settings; Triton's own trace files can't be turned on.
pub fn trace(request: &pb::TraceSettingRequest) -> Result<pb::TraceSettingResponse, RequestError> {
    let off = |values: &[String]| values.iter().all(|value| value == "OFF");
    for (name, setting) in &request.settings {
        if name == "trace_level" && !off(&setting.value) {
            return Err(RequestError::Unimplemented {
                what: "traces in Triton's format; trace_level stays OFF".to_owned(),
            });
        }
    }
    let setting = |name: &str, value: &str| {
        let value = TraceValue {
            value: vec![value.to_owned()],
        };
        (name.to_owned(), value)
    };
    Ok(pb::TraceSettingResponse {
        settings: HashMap::from([
            setting("trace_level", "OFF"),
            setting("trace_rate", "0"),
            setting("trace_count", "0"),
            setting("log_frequency", "0"),
            setting("trace_file", ""),
            setting("trace_mode", "triton"),
        ]),
    })
}
