//! Writes GGUF files, version 3: the header at once, then tensor by tensor, so that one tensor is
//! all that is in memory. The file takes its name when it is whole.

use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use tempfile::NamedTempFile;

use super::tensors::type_id;

/// Where a tensor's data may begin; what readers assume of files that don't say otherwise.
const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;
const ARRAY: u32 = 9;
const TEXT: u32 = 8;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// A whole number.
    U32(u32),
    /// A number.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array of strings.
    Texts(Vec<String>),
    /// An array of numbers.
    F32s(Vec<f32>),
    /// An array of whole numbers.
    I32s(Vec<i32>),
    /// An array of bytes.
    U8s(Vec<u8>),
    /// An array of truth values.
    Bools(Vec<bool>),
    /// A type's number and a value of it, as another file has them.
    Copied(Vec<u8>),
}

impl From<&str> for MetadataValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A tensor as the header announces it.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: GgmlDType,
}

impl TensorHeader {
    /// Bytes of its data.
    pub fn bytes(&self) -> usize {
        let elements: usize = self.shape.iter().product();
        elements / self.dtype.block_size() * self.dtype.type_size()
    }
}

/// A file in the making.
#[derive(Debug)]
pub struct GgufWriter {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
    /// Bytes that each tensor has yet to get, in order.
    sizes: std::vec::IntoIter<usize>,
    written: usize,
}

impl GgufWriter {
    /// Begins a file that will be `target`: writes the header, with the metadata and the tensors
    /// in their order.
    ///
    /// # Errors
    /// If the folder can't be written to.
    pub fn create(
        target: &Path,
        metadata: &[(String, MetadataValue)],
        tensors: &[TensorHeader],
    ) -> io::Result<Self> {
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // A new version's folder is made with its file.
        std::fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quantize-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file, less what the umask takes.
            builder.permissions(Permissions::from_mode(0o666));
        }
        let mut file = BufWriter::with_capacity(1 << 20, builder.tempfile_in(folder)?);
        let header = header(metadata, tensors);
        let sizes: Vec<usize> = tensors.iter().map(TensorHeader::bytes).collect();
        file.write_all(&header)?;
        Ok(Self {
            file,
            target: target.to_owned(),
            sizes: sizes.into_iter(),
            written: header.len(),
        })
    }

    /// Writes the data of the next tensor.
    ///
    /// # Errors
    /// If there is none left to write, it has another size than announced, or the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.sizes.next() {
            Some(size) if size == bytes.len() => {}
            Some(size) => {
                let found = bytes.len();
                return Err(io::Error::other(format!(
                    "a tensor of {size} bytes was announced, here are {found}"
                )));
            }
            None => return Err(io::Error::other("more tensors than were announced")),
        }
        self.file.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.file.write_all(&[0; ALIGNMENT][..padding])?;
        self.written += bytes.len() + padding;
        Ok(())
    }

    /// Gives the file its name. Returns its bytes.
    ///
    /// # Errors
    /// If a tensor is missing, or the disk is full.
    pub fn finish(self) -> io::Result<usize> {
        if self.sizes.len() > 0 {
            let missing = self.sizes.len();
            return Err(io::Error::other(format!("{missing} tensors are missing")));
        }
        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.target)?;
        Ok(self.written)
    }
}

fn header(metadata: &[(String, MetadataValue)], tensors: &[TensorHeader]) -> Vec<u8> {
    let mut bytes = Vec::from(*b"GGUF");
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut bytes, key);
        push_value(&mut bytes, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        push_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            bytes.extend((size as u64).to_le_bytes());
        }
        bytes.extend(type_id(tensor.dtype).to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn push_value(bytes: &mut Vec<u8>, value: &MetadataValue) {
    let scalar = |bytes: &mut Vec<u8>, kind: u32, value: &[u8]| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    };
    let array = |bytes: &mut Vec<u8>, kind: u32, count: usize| {
        bytes.extend(ARRAY.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
    };
    match value {
        MetadataValue::U32(value) => scalar(bytes, 4, &value.to_le_bytes()),
        MetadataValue::F32(value) => scalar(bytes, 6, &value.to_le_bytes()),
        MetadataValue::Bool(value) => scalar(bytes, 7, &[(*value).into()]),
        MetadataValue::Text(value) => {
            bytes.extend(TEXT.to_le_bytes());
            push_text(bytes, value);
        }
        MetadataValue::Texts(values) => {
            array(bytes, TEXT, values.len());
            for value in values {
                push_text(bytes, value);
            }
        }
        MetadataValue::F32s(values) => {
            array(bytes, 6, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        MetadataValue::I32s(values) => {
            array(bytes, 5, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        MetadataValue::U8s(values) => {
            array(bytes, 0, values.len());
            bytes.extend(values);
        }
        MetadataValue::Bools(values) => {
            array(bytes, 7, values.len());
            bytes.extend(values.iter().map(|&value| u8::from(value)));
        }
        MetadataValue::Copied(value) => bytes.extend(value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::TempDir;
    use super::super::GgufFile;
    use super::*;
    use candle_core::Device;

    fn tensor(name: &str, shape: &[usize], dtype: GgmlDType) -> TensorHeader {
        TensorHeader {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype,
        }
    }

    #[test]
    fn what_is_written_is_read_in_its_order_and_copies_are_equal()
    -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let path = dir.path().join("model.gguf");
        let metadata = [
            ("z.first", "llama".into()),
            ("a.count", MetadataValue::U32(7)),
            ("b.number", MetadataValue::F32(0.5)),
            ("c.flag", MetadataValue::Bool(true)),
            (
                "d.texts",
                MetadataValue::Texts(vec!["ä".to_owned(), String::new()]),
            ),
            ("e.numbers", MetadataValue::F32s(vec![1.5, -2.0])),
            ("f.whole", MetadataValue::I32s(vec![-1, 2])),
            ("g.bytes", MetadataValue::U8s(vec![1, 255])),
            ("h.flags", MetadataValue::Bools(vec![true, false])),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let tensors = [
            tensor("w", &[2, 3], GgmlDType::F32),
            tensor("q", &[1, 32], GgmlDType::Q8_0),
            tensor("n", &[5], GgmlDType::F32),
        ];
        let data: Vec<Vec<u8>> = tensors.iter().map(|t| vec![1; t.bytes()]).collect();
        let write = |path: &Path, metadata: &[_]| -> io::Result<usize> {
            let mut writer = GgufWriter::create(path, metadata, &tensors)?;
            for data in &data {
                writer.write(data)?;
            }
            writer.finish()
        };
        let bytes = write(&path, &metadata)?;
        assert_eq!(bytes as u64, path.metadata()?.len());
        let file = GgufFile::open(&path)?;
        assert_eq!(file.metadata().text("z.first")?, Some("llama"));
        assert_eq!(file.metadata().f32("b.number")?, Some(0.5));
        assert_eq!(file.metadata().texts("d.texts")?, Some(vec!["ä", ""]));
        assert_eq!(file.metadata().i32s("f.whole")?, Some(vec![-1, 2]));
        assert_eq!(file.metadata().bools("h.flags")?, Some(vec![true, false]));
        let q = file.tensor("q", &Device::Cpu)?;
        assert_eq!(q.data()?.as_ref(), data[1]);
        let names: Vec<_> = file
            .tensors_in_order()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["w", "q", "n"]);

        let copied: Vec<_> = file
            .copied_metadata()
            .map(|(key, value)| (key.to_owned(), MetadataValue::Copied(value.to_vec())))
            .collect();
        let copy = dir.path().join("copy.gguf");
        write(&copy, &copied)?;
        assert_eq!(std::fs::read(copy)?, std::fs::read(path)?);
        Ok(())
    }

    #[test]
    fn a_file_that_is_not_whole_never_takes_its_name() -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let path = dir.path().join("model.gguf");
        let tensors = [tensor("w", &[2], GgmlDType::F32)];
        let mut writer = GgufWriter::create(&path, &[], &tensors)?;
        assert!(writer.write(&[0; 4]).is_err());
        drop(writer);
        let writer = GgufWriter::create(&path, &[], &tensors)?;
        assert!(writer.finish().is_err());
        let mut writer = GgufWriter::create(&path, &[], &tensors)?;
        writer.write(&[0; 8])?;
        assert!(writer.write(&[0; 8]).is_err());
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);
        Ok(())
    }
}
