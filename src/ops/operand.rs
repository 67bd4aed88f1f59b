//! What every op checks of the tensors that it is given, before it touches their values.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 operand; `what` names it in the error.
pub(crate) fn f32_values<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    what: &str,
) -> Result<&'a [f32]> {
    let (start, end) = bounds(layout, what)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Like [`f32_values`], to be written to.
pub(crate) fn f32_values_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    what: &str,
) -> Result<&'a mut [f32]> {
    let (start, end) = bounds(layout, what)?;
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => bail!("{what} must be f32"),
    }
}

/// The values of a contiguous u32 operand.
pub(crate) fn u32_values<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    what: &str,
) -> Result<&'a [u32]> {
    let (start, end) = bounds(layout, what)?;
    Ok(&storage.as_slice::<u32>()?[start..end])
}

/// A weight that an op holds, locked for reading while the op runs.
pub(crate) struct Weight<'a, G> {
    storage: G,
    layout: &'a Layout,
    what: &'static str,
}

/// Locks `weight`; `what` names it in errors.
pub(crate) fn read<'a>(
    weight: &'a Tensor,
    what: &'static str,
) -> Weight<'a, impl Deref<Target = Storage> + 'a> {
    let (storage, layout) = weight.storage_and_layout();
    Weight {
        storage,
        layout,
        what,
    }
}

/// Calls `f` with the values of a vector of f32 on the CPU, which is locked for reading as long.
///
/// # Errors
/// If it is something else, and those of `f`.
pub fn vector_values<T>(vector: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    f(read(vector, "vector").values(vector.dims1()?)?)
}

impl<G: Deref<Target = Storage>> Weight<'_, G> {
    /// The values: contiguous f32 on the CPU, and `expected` of them.
    pub fn values(&self, expected: usize) -> Result<&[f32]> {
        let Storage::Cpu(storage) = &*self.storage else {
            bail!("{} must be on the CPU, as the activations are", self.what)
        };
        let values = f32_values(storage, self.layout, self.what)?;
        if values.len() != expected {
            let (what, found) = (self.what, values.len());
            bail!("{what} must have {expected} values, has {found}");
        }
        Ok(values)
    }
}

/// Checks `cu_seqlens` against the number of tokens: it begins with 0, ends with `tokens` and
/// never falls. The kernels index by it without further thought.
pub(crate) fn check_cu_seqlens(cu_seqlens: &[u32], tokens: usize) -> Result<()> {
    let spans = cu_seqlens.first() == Some(&0)
        && cu_seqlens.last().is_some_and(|&end| end as usize == tokens);
    if !spans || cu_seqlens.windows(2).any(|pair| pair[0] > pair[1]) {
        bail!("cu_seqlens must rise from 0 to the number of tokens, {tokens}");
    }
    Ok(())
}

/// The two dimensions of a packed activation.
pub(crate) fn dims2(layout: &Layout, what: &str) -> Result<(usize, usize)> {
    match *layout.dims() {
        [rows, columns] => Ok((rows, columns)),
        ref other => bail!("{what} must have two dimensions, has {other:?}"),
    }
}

fn bounds(layout: &Layout, what: &str) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(bounds) => Ok(bounds),
        None => bail!(
            "{what} must be contiguous, has strides {:?}",
            layout.stride()
        ),
    }
}
