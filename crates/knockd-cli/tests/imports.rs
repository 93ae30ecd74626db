//! Which folder of the daemon may import which: the drawing in docs/architecture.md is held against the code.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders with those that each of them imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    testbed::workspace_root()
}

/// Reads the drawing, the only block of plain text that has such lines: `folder -> other other`.
fn drawn(page: &str) -> Imports {
    let blocks = page.split("```text\n").skip(1).filter_map(|rest| rest.split("```").next());
    let drawing = blocks.filter(|block| block.lines().all(|line| line.contains("->"))).collect::<Vec<_>>();
    assert_eq!(drawing.len(), 1, "{drawing:?}");
    let of = |others: &str| others.split_whitespace().map(str::to_owned).collect();
    let folders = drawing[0].lines().map(|line| line.split_once("->").unwrap());
    folders.map(|(folder, others)| (folder.trim().to_owned(), of(others))).collect()
}

/// Reads the `crate::` paths of a folder's product code, and its `super::` paths that leave it.
fn imported(source: &Path, folder: &str, folders: &BTreeSet<String>) -> BTreeSet<String> {
    let mut files = vec![source.join(format!("{folder}.rs"))];
    let mut directories = vec![source.join(folder)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let list = if entry.path().is_dir() { &mut directories } else { &mut files };
            list.push(entry.path());
        }
    }
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    let paths = texts.flat_map(|text| {
        let product = text.split("#[cfg(test)]").next().unwrap().to_owned();
        let starts = product.match_indices("crate::").map(|(at, found)| at + found.len());
        let word =
            |at: usize| product[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        starts.map(word).collect::<Vec<String>>()
    });
    paths.filter(|path| path != folder && folders.contains(path)).collect()
}

#[test]
fn every_folder_imports_what_the_architecture_draws_and_nothing_else() {
    let drawn = drawn(&fs::read_to_string(root().join("docs/architecture.md")).unwrap());
    let source = root().join("crates/knockd-cli/src");
    let folders: BTreeSet<_> = fs::read_dir(&source)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(folders.len() > 5, "{folders:?}");
    let real: Imports =
        folders.iter().map(|folder| (folder.clone(), imported(&source, folder, &folders))).collect();
    assert_eq!(real, drawn);
}

#[test]
fn the_drawing_has_no_circle() {
    let mut left = drawn(&fs::read_to_string(root().join("docs/architecture.md")).unwrap());
    while !left.is_empty() {
        let free: Vec<_> =
            left.iter().filter(|(_, others)| others.iter().all(|other| !left.contains_key(other))).collect();
        let free: Vec<_> = free.into_iter().map(|(folder, _)| folder.clone()).collect();
        assert!(!free.is_empty(), "{left:?} import each other");
        left.retain(|folder, _| !free.contains(folder));
    }
}
