//! Reflection: each listener tells of the services it has.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic_reflection::server::Builder;

use crate::api::proto::DESCRIPTORS;

const ADMIN: &str = "ferry/v1/admin.proto";
/// What [`ADMIN`] imports.
const ADMIN_IMPORTS: &str = "google/protobuf/timestamp.proto";

/// Builds reflection of the services for everyone.
pub fn of_public_services() -> Builder<'static> {
    of_files(|name| name != ADMIN)
}

/// Builds reflection of the operators' service.
pub fn of_admin() -> Builder<'static> {
    of_files(|name| name == ADMIN || name == ADMIN_IMPORTS)
}

fn of_files(keep: impl Fn(&str) -> bool) -> Builder<'static> {
    // What `build.rs` encoded decodes; were it not so, reflection would fail to build, with a text.
    let mut files = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
    files.file.retain(|file| keep(file.name()));
    Builder::configure()
        .register_file_descriptor_set(files)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_import_of_a_listener_s_files_is_among_them() {
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let admin = files.file.iter().find(|file| file.name() == ADMIN).unwrap();
        assert_eq!(admin.dependency, [ADMIN_IMPORTS]);
        let public = files.file.iter().filter(|file| file.name() != ADMIN);
        assert!(
            public
                .flat_map(|file| &file.dependency)
                .all(|name| name != ADMIN)
        );
        assert!(of_public_services().build_v1().is_ok());
        assert!(of_admin().build_v1alpha().is_ok());
    }
}
