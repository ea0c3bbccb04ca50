//! Rust files as tokens: the paths they name and the words they use, with the place of each.

use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One Rust file, its path relative to the project's root.
pub(crate) struct SourceFile {
    pub(crate) path: String,
    tokens: TokenStream,
}

/// A path that starts at the crate's root, wherever it was written and however (`crate::`, `super::`, a `use` tree).
pub(crate) struct CratePath {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
    /// Within `#[cfg(test)]`, which the rules about the operating system leave alone.
    pub(crate) in_test: bool,
}

/// The text of a file beneath the project's root.
pub(crate) fn under_root(path: &str) -> String {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&full).unwrap_or_else(|e| panic!("cannot read {}: {e}", full.display()))
}

/// Every `.rs` file beneath `folder`, as paths relative to the project's root; none when there is no such folder.
pub(crate) fn rust_files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder)) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().to_str().expect("our file names are UTF-8"));
            if entry.file_type().unwrap().is_dir() {
                if entry.file_name() != "target" {
                    folders.push(path);
                }
            } else if path.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

impl SourceFile {
    pub(crate) fn read(path: &str) -> Self {
        Self::parse(path, &under_root(path))
    }

    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let tokens = text.parse().unwrap_or_else(|e| panic!("{path} is not Rust: {e}"));
        Self { path: path.to_owned(), tokens }
    }

    /// The module right under the crate's root that the file belongs to; none for `lib.rs` and `main.rs`.
    pub(crate) fn top_module(&self) -> Option<String> {
        let first = self.path.strip_prefix("src/")?.split('/').next()?;
        match first {
            "lib.rs" | "main.rs" => None,
            other => Some(other.trim_end_matches(".rs").to_owned()),
        }
    }

    /// Whether the whole file is test code.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// `path:line` of every use of the word as code.
    pub(crate) fn mentions(&self, word: &str) -> Vec<String> {
        let mut lines = Vec::new();
        words(&self.tokens, &mut |name, line| {
            if name == word {
                lines.push(line);
            }
        });
        lines.into_iter().map(|line| format!("{}:{line}", self.path)).collect()
    }

    /// Every path that the file names, from the crate's root where it is relative to it, else as written.
    pub(crate) fn paths(&self) -> Vec<CratePath> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path).trim_end_matches(".rs");
        let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        let mut paths = Vec::new();
        walk(&self.tokens, &module, self.is_test(), &mut paths);
        paths
    }
}

fn words(tokens: &TokenStream, found: &mut impl FnMut(&str, usize)) {
    for token in tokens.clone() {
        match token {
            TokenTree::Ident(ident) => {
                found(ident.to_string().trim_start_matches("r#"), ident.span().start().line);
            }
            TokenTree::Group(group) => words(&group.stream(), found),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

fn walk(tokens: &TokenStream, module: &[String], in_test: bool, found: &mut Vec<CratePath>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let mut next_item_is_test = false;
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Punct(p) if p.as_char() == '#' => {
                if let Some(TokenTree::Group(attribute)) = tokens.get(at + 1) {
                    next_item_is_test |= is_cfg_test(&attribute.stream());
                    at += 2;
                    continue;
                }
            }
            TokenTree::Punct(p) if p.as_char() == ';' => next_item_is_test = false,
            TokenTree::Ident(ident) if ident == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    let mut inner = module.to_vec();
                    inner.push(name.to_string());
                    walk(&body.stream(), &inner, in_test || next_item_is_test, found);
                    next_item_is_test = false;
                    at += 3;
                    continue;
                }
            }
            TokenTree::Ident(_) => {
                at = path_at(&tokens, at, &[], module, in_test || next_item_is_test, found);
                continue;
            }
            TokenTree::Group(group) => {
                walk(&group.stream(), module, in_test || next_item_is_test, found);
                if group.delimiter() == Delimiter::Brace {
                    next_item_is_test = false;
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        at += 1;
    }
}

fn is_cfg_test(attribute: &TokenStream) -> bool {
    let mut names = Vec::new();
    words(attribute, &mut |name, _| names.push(name.to_owned()));
    names.first().is_some_and(|n| n == "cfg") && names.iter().any(|n| n == "test") && !names.iter().any(|n| n == "not")
}

/// Reads the path that starts at `at` and records it, or each leaf of it where it is a tree; returns the index after it.
fn path_at(
    tokens: &[TokenTree],
    mut at: usize,
    prefix: &[String],
    module: &[String],
    in_test: bool,
    found: &mut Vec<CratePath>,
) -> usize {
    let mut segments = prefix.to_vec();
    let mut line = 0;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) => {
                segments.push(ident.to_string());
                line = ident.span().start().line;
            }
            Some(TokenTree::Punct(star)) if star.as_char() == '*' => {
                segments.push("*".to_owned());
                line = star.span().start().line;
            }
            Some(TokenTree::Group(tree)) if tree.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = tree.stream().into_iter().collect();
                let mut leaf = 0;
                while leaf < inner.len() {
                    leaf = match &inner[leaf] {
                        TokenTree::Punct(p) if p.as_char() != '*' => leaf + 1,
                        _ => path_at(&inner, leaf, &segments, module, in_test, found),
                    };
                }
                return at + 1;
            }
            // `Vec::<u8>::new`: what stands between the brackets is read as paths of its own.
            _ => break,
        }
        at += 1;
        let colons = |i: usize| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.as_char() == ':');
        if !(colons(at) && colons(at + 1)) {
            break;
        }
        at += 2;
    }
    if line > 0 {
        found.push(CratePath { segments: from_root(segments, module), line, in_test });
    } else {
        // Nothing that can be part of a path: step over it, so that the caller makes progress.
        at += usize::from(segments.len() == prefix.len());
    }
    at
}

/// `super::super::x` and `self::x` as they read from the crate's root: `crate::…::x`. Others stay as they are.
fn from_root(segments: Vec<String>, module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = segments.iter().peekable();
    match rest.peek().map(|s| s.as_str()) {
        Some("self") => {
            rest.next();
        }
        Some("super") => {
            while rest.next_if(|s| *s == "super").is_some() {
                base.pop();
            }
        }
        _ => return segments,
    }
    std::iter::once("crate".to_owned()).chain(base).chain(rest.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(path: &str, text: &str) -> Vec<String> {
        SourceFile::parse(path, text).paths().iter().map(|p| p.segments.join("::")).collect()
    }

    #[test]
    fn every_leaf_of_a_use_tree_is_a_path() {
        let found = paths("src/disk/mod.rs", "use crate::{base::{Error, Result as R}, storage::*}; use super::fs;");
        for wanted in ["crate::base::Error", "crate::base::Result", "crate::storage::*", "crate::fs"] {
            assert!(found.iter().any(|p| p == wanted), "{wanted} in {found:?}");
        }
    }

    #[test]
    fn super_is_counted_from_the_file_and_its_inline_modules() {
        let found = paths("src/disk/qcow2/map.rs", "mod a { mod b { use super::super::super::super::super::cli; } }");
        assert!(found.contains(&"crate::cli".to_owned()), "{found:?}");
        let found = paths("src/disk/mod.rs", "use super::base::Error; fn f() { self::x::y() }");
        assert!(found.contains(&"crate::base::Error".to_owned()), "{found:?}");
        assert!(found.contains(&"crate::disk::x::y".to_owned()), "{found:?}");
    }

    #[test]
    fn paths_inside_macros_and_bodies_count_and_comments_do_not() {
        let found = paths("src/base/a.rs", "// crate::cli\nfn f() { println!(\"crate::fs\", crate::fuse::X) }");
        assert!(found.contains(&"crate::fuse::X".to_owned()), "{found:?}");
        assert!(!found.iter().any(|p| p.starts_with("crate::cli") || p.starts_with("crate::fs")), "{found:?}");
    }

    #[test]
    fn test_code_is_told_from_the_rest() {
        let file = SourceFile::parse(
            "src/base/a.rs",
            "#[cfg(test)] mod tests { use std::fs; } use std::io; #[cfg(test)] use std::path; use std::net;",
        );
        let of = |name: &str| file.paths().iter().find(|p| p.segments.join("::") == name).expect(name).in_test;
        assert!(of("std::fs") && of("std::path"));
        assert!(!of("std::io") && !of("std::net"));
    }
}
