//! `docs/faults.md` lists every case: each row names a test that is there, and each test of this folder
//! stands in a row.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::support::root;

/// A row's cells; the tests that it names are in the last.
fn rows(page: &str) -> Vec<Vec<&str>> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").collect::<Vec<_>>())
        .filter(|cells| cells.len() == 6 && cells[0] != "case" && !cells[0].starts_with("---"))
        .collect()
}

fn names<'a>(row: &[&'a str]) -> Vec<&'a str> {
    row[5].split('`').skip(1).step_by(2).collect()
}

/// The files that a test's path may mean: `it::drain::…` is in tests/it/drain.rs, `jobs::id::…` is a
/// test beside the code.
fn files(modules: &[&str]) -> Vec<PathBuf> {
    let (last, folders) = modules.split_last().unwrap();
    let below = |top: &str| {
        let folder: PathBuf = [root().to_str().unwrap(), top]
            .iter()
            .chain(folders)
            .collect();
        [
            folder.join(format!("{last}.rs")),
            folder.join(last).join("mod.rs"),
            folder.join(last).join("main.rs"),
        ]
    };
    [below("tests"), below("src")].concat()
}

fn is_test(file: &Path, name: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|source| tests_of(&source).contains(name))
}

/// The names of a source file's tests.
fn tests_of(source: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut is_next = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_next = true;
        } else if is_next && let Some((_, rest)) = line.split_once("fn ") {
            tests.insert(rest.split(['(', '<']).next().unwrap().to_owned());
            is_next = false;
        }
    }
    tests
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/faults.md")).unwrap()
}

#[test]
fn every_case_of_the_page_names_tests_that_are_there() {
    let page = page();
    let rows = rows(&page);
    assert!(rows.len() > 30, "the page has {} cases", rows.len());
    for row in &rows {
        assert!(row.iter().all(|cell| !cell.trim().is_empty()), "{row:?}");
        let names = names(row);
        assert!(!names.is_empty(), "no test: {row:?}");
        for path in names {
            let parts: Vec<&str> = path.split("::").collect();
            let (name, modules) = parts.split_last().unwrap();
            assert!(!modules.is_empty(), "{path}: in which file?");
            let found = files(modules).iter().any(|file| is_test(file, name));
            assert!(found, "there is no test {path}, which docs/faults.md names");
        }
    }
}

#[test]
fn every_test_of_a_fault_stands_in_the_page() {
    let page = page();
    let named: BTreeSet<String> = rows(&page)
        .iter()
        .flat_map(|row| names(row))
        .map(str::to_owned)
        .collect();
    for file in std::fs::read_dir(root().join("tests/faults")).unwrap() {
        let path = file.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap();
        if module == "table" {
            continue;
        }
        for test in tests_of(&std::fs::read_to_string(&path).unwrap()) {
            let full = format!("faults::{module}::{test}");
            assert!(
                named.contains(&full),
                "{full} stands in no row of docs/faults.md"
            );
        }
    }
}
