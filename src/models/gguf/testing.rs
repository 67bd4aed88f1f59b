//! Writes GGUF files for tests, true and false ones.

use std::path::Path;

const ALIGNMENT: usize = 32;

/// A file in the making; the data of its tensors begin at a multiple of 32.
#[derive(Default)]
pub(in crate::models) struct GgufWriter {
    values: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
}

impl GgufWriter {
    pub fn new() -> Self {
        Self::default()
    }

    /// A metadata value by its type's number and its bytes.
    pub fn value(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.values += 1;
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.value(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.value(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.value(key, 7, &[value.into()])
    }

    pub fn string(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.value(key, 8, &bytes)
    }

    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = Vec::new();
        for value in values {
            text(&mut bytes, value);
        }
        self.array(key, 8, values.len(), &bytes)
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 6, values.len(), &bytes)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 5, values.len(), &bytes)
    }

    fn array(self, key: &str, kind: u32, count: usize, values: &[u8]) -> Self {
        let mut bytes = Vec::from(kind.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(values);
        self.value(key, 9, &bytes)
    }

    /// A tensor of f32; `shape` outermost first.
    pub fn f32_tensor(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, shape, 0, &bytes)
    }

    /// A tensor by its type's number and its bytes; `shape` outermost first.
    pub fn tensor(self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) -> Self {
        let shape: Vec<u64> = shape.iter().rev().map(|&size| size as u64).collect();
        let offset = self.data.len().next_multiple_of(ALIGNMENT);
        self.raw_tensor(name, &shape, kind, offset as u64, bytes)
    }

    /// A tensor as the header has it, whatever it says of the bytes.
    pub fn raw_tensor(
        mut self,
        name: &str,
        shape: &[u64],
        kind: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Self {
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        self.infos
            .extend(shape.iter().flat_map(|v| v.to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensors += 1;
        self.data
            .resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.data.extend(bytes);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(*b"GGUF");
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.values.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.infos);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, self.bytes())
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
