//! The rooms of ARCHITECTURE.md hold: no room imports another that the table doesn't allow.

use std::{collections::BTreeMap, fs, path::Path};

use super::support::root;

/// Room → what it may import, read from the table in ARCHITECTURE.md.
fn table() -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut rooms = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `src/")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let room = cells[1].trim_matches('`').trim_start_matches("src/");
        let room = room
            .trim_end_matches('/')
            .trim_end_matches(".rs")
            .to_owned();
        let may = cells[3].split(',').map(|name| name.trim().to_owned());
        rooms.insert(room, may.collect());
    }
    assert!(rooms.len() > 10, "the table of rooms was not found");
    rooms
}

/// Names after `crate::` in a file, in any `use` or path.
fn imports(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = code[at + "crate::".len()..].trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            // `use crate::{a::b, c::{d, e}, …}`: the names at depth one.
            let (mut depth, mut name) = (1, String::new());
            for letter in group.chars() {
                match letter {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => found.push(std::mem::take(&mut name)),
                    other if depth == 1 => name.push(other),
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_owned());
        }
    }
    found
        .into_iter()
        .map(|path| {
            let path = path.trim_start();
            let end = path
                .find(|letter: char| !(letter.is_alphanumeric() || letter == '_'))
                .unwrap_or(path.len());
            path[..end].to_owned()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn check(path: &Path, room: &str, rooms: &BTreeMap<String, Vec<String>>, broken: &mut Vec<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            check(&entry.unwrap().path(), room, rooms, broken);
        }
        return;
    }
    let Some(may) = rooms.get(room) else {
        broken.push(format!("{room} is not in the table"));
        return;
    };
    if may.iter().any(|name| name == "everything") {
        return;
    }
    for import in imports(&fs::read_to_string(path).unwrap()) {
        if import != room && !may.contains(&import) {
            broken.push(format!("{} imports {import}", path.display()));
        }
    }
}

#[test]
fn no_room_imports_what_the_table_does_not_allow() {
    let rooms = table();
    let mut broken = Vec::new();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let room = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if room != "lib" && room != "main" {
            check(&path, &room, &rooms, &mut broken);
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn reaches(rooms: &BTreeMap<String, Vec<String>>, from: &str, to: &str, depth: usize) -> bool {
    depth < rooms.len()
        && rooms.get(from).is_some_and(|may| {
            may.iter()
                .any(|next| next == to || reaches(rooms, next, to, depth + 1))
        })
}

#[test]
fn arrows_never_point_back() {
    // A table that allows a circle would be no architecture.
    let rooms = table();
    for room in rooms.keys() {
        assert!(!reaches(&rooms, room, room, 0), "{room} reaches itself");
    }
}

#[test]
fn imports_are_found_in_groups_and_paths() {
    let text = "use crate::{a::B, c::{d, e},\n    f};\nfn x() { crate::g::h() }\n// crate::no\n";
    assert_eq!(imports(text), ["a", "c", "f", "g"]);
}
