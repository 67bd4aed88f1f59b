//! Which device a model runs on, as configuration says it: `device = "auto"`, `"cpu"`, `"cuda"`,
//! `"cuda:1"`, or a list such as `["cuda:0", "cuda:1"]`.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};

/// What is allowed, for messages.
const ALLOWED: &str =
    "\"auto\", \"cpu\", \"cuda\", \"cuda:N\", or a list such as [\"cuda:0\", \"cuda:1\"]";
/// GPUs of one machine, at most.
const MAX_ORDINAL: usize = 63;

/// Which device a model runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The first GPU where there is one that this binary can use, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// These GPUs, by number; without them the model does not load. A model's instances are spread
    /// over them.
    Cuda(Vec<usize>),
}

impl DeviceChoice {
    /// How many devices it names.
    pub fn count(&self) -> usize {
        match self {
            Self::Auto | Self::Cpu => 1,
            Self::Cuda(ordinals) => ordinals.len(),
        }
    }

    fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut ordinals = Vec::new();
        for name in names {
            let Self::Cuda(mut more) = name.parse()? else {
                return Err(format!(
                    "a list of devices names GPUs only, not '{name}'; allowed: {ALLOWED}"
                ));
            };
            ordinals.append(&mut more);
        }
        let mut once = ordinals.clone();
        once.sort_unstable();
        once.dedup();
        if once.len() < ordinals.len() {
            return Err(
                "a list of devices names each once; for several instances of a model on one \
                        GPU set resources.instances"
                    .to_owned(),
            );
        }
        if ordinals.is_empty() {
            return Err(format!("the list of devices is empty; allowed: {ALLOWED}"));
        }
        Ok(Self::Cuda(ordinals))
    }
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    /// Reads one name, or several with commas between, as the command line has them.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(',') {
            return Self::from_names(text.split(',').map(str::trim));
        }
        let wrong = || format!("no device '{text}'; allowed: {ALLOWED}");
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(vec![0])),
            _ => {
                let digits = text.strip_prefix("cuda:").ok_or_else(wrong)?;
                let ordinal = Some(digits)
                    .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|digits| digits.parse().ok())
                    .filter(|&ordinal| ordinal <= MAX_ORDINAL);
                Ok(Self::Cuda(vec![ordinal.ok_or_else(wrong)?]))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinals) => {
                for (index, ordinal) in ordinals.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma}cuda:{ordinal}")?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Cuda(ordinals) if ordinals.len() > 1 => {
                serializer.collect_seq(ordinals.iter().map(|ordinal| format!("cuda:{ordinal}")))
            }
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choice;

        impl<'de> Visitor<'de> for Choice {
            type Value = DeviceChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ALLOWED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DeviceChoice, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<DeviceChoice, A::Error> {
                let mut names: Vec<String> = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                let choice = DeviceChoice::from_names(names.iter().map(String::as_str));
                choice.map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Choice)
    }
}

/// What happens when the device under an instance fails for good: an illegal access, a memory error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeviceFailure {
    /// The instance is loaded anew, in a fresh context, while its requests are refused.
    #[default]
    Restart,
    /// The server answers what it has and ends with an error, for its orchestrator to start it again.
    Exit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Section {
        device: DeviceChoice,
    }

    fn read(value: &str) -> Result<DeviceChoice, String> {
        let section: Result<Section, _> = toml::from_str(&format!("device = {value}"));
        section
            .map(|section| section.device)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_device_is_a_name_or_a_list_of_gpus_and_survives_printing() {
        let cuda = |ordinals: &[usize]| DeviceChoice::Cuda(ordinals.to_vec());
        for (text, choice) in [
            ("\"auto\"", DeviceChoice::Auto),
            ("\"cpu\"", DeviceChoice::Cpu),
            ("\"cuda\"", cuda(&[0])),
            ("\"cuda:3\"", cuda(&[3])),
            ("[\"cuda:1\", \"cuda:0\"]", cuda(&[1, 0])),
            ("\"cuda:1, cuda:0\"", cuda(&[1, 0])),
        ] {
            assert_eq!(read(text), Ok(choice.clone()), "{text}");
            let printed = toml::to_string(&Section {
                device: choice.clone(),
            })
            .unwrap();
            assert_eq!(toml::from_str::<Section>(&printed).unwrap().device, choice);
        }
    }

    #[test]
    fn what_is_no_device_is_refused_with_its_line_and_what_would_be_one() {
        for text in [
            "\"gpu\"",
            "\"cuda:\"",
            "\"cuda:x\"",
            "\"cuda:+1\"",
            "\"cuda:64\"",
            "3",
            "[]",
            "[\"cpu\", \"cuda:0\"]",
            "[\"cuda:0\", 1]",
        ] {
            let error = read(text).unwrap_err();
            assert!(
                error.contains("line 1") && error.contains("cuda:"),
                "{text}: {error}"
            );
        }
        let twice = read("[\"cuda:0\", \"cuda\"]").unwrap_err();
        assert!(twice.contains("resources.instances"), "{twice}");
    }
}
