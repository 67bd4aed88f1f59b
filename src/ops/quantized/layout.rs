//! Where the panels of a weight come from: laid out anew from the blocks of a GGML file, or as an
//! earlier load laid them out and left them in a file.

use bytemuck::Pod;

use super::super::values::{MappedBytes, Values};

/// The parts of a weight's panels in memory, in the order in which they are written to a file.
pub(super) type Sections<'a> = Vec<&'a [u8]>;

/// A file's sections, taken one after the other, each with the length that it must have.
pub(super) struct Found<'a> {
    sections: std::slice::Iter<'a, MappedBytes>,
}

impl<'a> Found<'a> {
    pub fn new(sections: &'a [MappedBytes]) -> Self {
        let sections = sections.iter();
        Self { sections }
    }

    /// The next section as `count` values; `None` if it is something else, or there is none.
    pub fn take<T: Pod>(&mut self, count: usize) -> Option<Values<T>> {
        let values = Values::mapped(self.sections.next()?.clone())?;
        (values.len() == count).then_some(values)
    }
}
