//! Tables for a terminal.

use std::fmt::Write;

/// A table for a terminal: first column to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let gap = " ".repeat(width - cell.chars().count());
            if line.is_empty() {
                line = format!("{cell}{gap}");
            } else {
                let _ = write!(line, "  {gap}{cell}");
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
