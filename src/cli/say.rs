//! What commands print. Whoever reads it may have gone (`ferry jobs list | head -1`): the command ends
//! then, quietly, with the code that a shell gives to what ends so.

use std::{
    fmt::Arguments,
    io::{self, Write},
};

/// 128 and the number of the signal that ends other programs here, SIGPIPE.
const CLOSED: i32 = 141;

/// Prints a line to standard output.
macro_rules! say {
    () => { $crate::cli::say::print(format_args!("\n")) };
    ($($part:tt)*) => { $crate::cli::say::print(format_args!("{}\n", format_args!($($part)*))) };
}

/// Prints to standard output what is not a line yet.
macro_rules! say_part {
    ($($part:tt)*) => { $crate::cli::say::print(format_args!($($part)*)) };
}

/// Prints a line to standard error; where nobody reads that, it goes nowhere.
macro_rules! say_aside {
    () => { $crate::cli::say::aside(format_args!("\n")) };
    ($($part:tt)*) => { $crate::cli::say::aside(format_args!("{}\n", format_args!($($part)*))) };
}

/// Prints to standard error what is not a line yet.
macro_rules! say_aside_part {
    ($($part:tt)*) => { $crate::cli::say::aside(format_args!($($part)*)) };
}

/// Prints to standard output.
pub(super) fn print(text: Arguments) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        ended(&error);
    }
}

/// Prints to standard error.
pub(super) fn aside(text: Arguments) {
    // What can't be said there can't be said anywhere.
    let _ = io::stderr().lock().write_fmt(text);
}

/// Ends the process, since standard output takes nothing more.
fn ended(error: &io::Error) -> ! {
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(CLOSED);
    }
    aside(format_args!(
        "ferry: can't write to standard output: {error}\n"
    ));
    std::process::exit(1);
}

/// Ends the process if a command failed since nobody reads its output any more.
pub(super) fn end_if_closed(failure: &(dyn std::error::Error + 'static)) {
    if let Some(error) = failure.downcast_ref::<io::Error>()
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        std::process::exit(CLOSED);
    }
}
