//! A generation's way in: check what is asked, make token ids of the prompt, put its sequences in
//! line. Its way out: tokens to text, stop texts, piece by piece.

mod board;
mod call;
mod continuation;
mod piece;
mod prepare;
mod question;
mod settle;
mod source;
mod stream;

pub use call::{GenerateCall, MAX_CONTINUATIONS, Prompt};
pub use piece::{Alternative, Ending, Finish, Piece, PieceToken};
pub use stream::Generation;
