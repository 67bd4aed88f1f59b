//! Where one constrained output stands.

use std::fmt;

use llguidance::{Matcher, toktrie::SimpleVob};

use super::ConstraintError;

/// One output that is held to a form. Cloned, both go on from where it stands.
#[derive(Clone)]
pub struct ConstraintState {
    matcher: Matcher,
    mask: SimpleVob,
    words: usize,
}

impl fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintState")
            .field("complete", &self.is_complete())
            .finish_non_exhaustive()
    }
}

impl ConstraintState {
    pub(super) fn new(matcher: Matcher, vocabulary: usize) -> Self {
        Self {
            matcher,
            mask: SimpleVob::new(),
            words: vocabulary.div_ceil(32),
        }
    }

    /// Which tokens may come next: bit `id % 32` of word `id / 32`. Ids beyond the words may not.
    /// Where nothing but an end can follow, only the tokens that end a generation may.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`] when finding out takes more work than allowed.
    pub fn mask(&mut self) -> Result<&[u32], ConstraintError> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let words = self.mask.as_slice();
        Ok(&words[..self.words.min(words.len())])
    }

    /// Goes on by a token that the mask allowed.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`] when it was not allowed; the output can't go on then.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.is_complete() {
            // The end of a finished output: nothing is left to follow.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(failed)
    }

    /// Whether the output has its form and nothing but an end can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn failed(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Failed(error.to_string())
}
