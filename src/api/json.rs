//! Protobuf messages as JSON and back, by their descriptors: protobuf's own JSON mapping, with the
//! fields' names as they stand in the protos and 64 bit integers as numbers.

use std::sync::OnceLock;

use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};

use crate::{api::proto::DESCRIPTORS, error::RequestError};

fn descriptor(name: &str) -> Result<MessageDescriptor, RequestError> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).ok());
    pool.as_ref()
        .and_then(|pool| pool.get_message_by_name(name))
        .ok_or_else(|| RequestError::internal(format_args!("no descriptor of {name}")))
}

/// Writes a message of type `name` as one line of JSON, without the line break.
///
/// # Errors
/// [`RequestError::Internal`] when `name` is not its type.
pub fn to_json(message: &impl Message, name: &str) -> Result<Vec<u8>, RequestError> {
    let bytes = message.encode_to_vec();
    let dynamic =
        DynamicMessage::decode(descriptor(name)?, &*bytes).map_err(RequestError::internal)?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    let mut json = serde_json::Serializer::new(Vec::with_capacity(2 * bytes.len()));
    dynamic
        .serialize_with_options(&mut json, &options)
        .map_err(RequestError::internal)?;
    Ok(json.into_inner())
}

/// Reads a message of type `name` from JSON. Fields that are not known are refused.
///
/// # Errors
/// What is wrong, in words.
pub fn from_json<T: Message + Default>(json: &[u8], name: &str) -> Result<T, String> {
    let descriptor = descriptor(name).map_err(|error| error.to_string())?;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options)
        .map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    dynamic
        .transcode_to::<T>()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::ferry::v1::{EmbedRequest, JobRow, job_row::Request};

    #[test]
    fn a_message_is_the_same_after_json() {
        let row = JobRow {
            id: "a".to_owned(),
            request: Some(Request::Embed(EmbedRequest {
                texts: vec!["All aboard!".to_owned()],
                ..EmbedRequest::default()
            })),
        };
        let json = to_json(&row, "ferry.v1.JobRow").unwrap();
        assert!(String::from_utf8_lossy(&json).contains("token_ids"));
        assert_eq!(from_json::<JobRow>(&json, "ferry.v1.JobRow"), Ok(row));
    }

    #[test]
    fn what_a_message_does_not_have_is_refused() {
        for json in [r#"{"name":"a"}"#, r#"{"id":1}"#, "[]", r#"{"id":"a"} x"#] {
            assert!(from_json::<JobRow>(json.as_bytes(), "ferry.v1.JobRow").is_err());
        }
    }
}
