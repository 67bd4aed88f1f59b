//! May this request come in? Checks it, has its text tokenized, puts its rows in line.
//!
//! What comes out is a [`Boarded`]: a request whose rows are accepted, each of which will be
//! answered. What is refused is refused at once, with the reason and, where it may help, a hint
//! when to try again.

mod arriving;
mod attempts;
mod bearer;
mod board;
mod callers;
mod cascade;
mod check;
mod context;
mod explain;
mod generate;
mod lookup;
mod mirror;
mod operators;
mod unsure;

pub use bearer::bearer;
pub use board::{Admission, AnsweredRow, Boarded, RowResult};
pub use callers::{AllowedModels, Callers, Entered, Need, Place};
pub use cascade::Escalation;
pub use check::Call;
pub use context::{CallContext, ContextError};
pub use explain::{ExplainBy, ExplainCall, Explained, Explanation};
pub use generate::{
    Alternative, Ending, Finish, GenerateCall, Generation, MAX_CONTINUATIONS, Piece, PieceToken,
    Prompt,
};
pub use operators::{Operator, Operators, TokenError};
pub use unsure::{FallBack, WhenUnsure};
